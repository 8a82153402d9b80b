"""Which process is which, and whether one of this host is still there.

Decides it by what Linux shows under /proc; elsewhere no process is ever known to be dead.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process of one boot of one host."""

    host: str
    """Boot id and process-id namespace: two processes that agree here see each other's process ids."""
    pid: int
    started: str
    """When it started, in the kernel's own count; a process id is used again, this pair is not."""

    @classmethod
    def this(cls) -> Process:
        pid = os.getpid()
        try:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return cls(f"{boot_id} {os.readlink('/proc/self/ns/pid')}", pid, _started(pid) or "")
        except OSError:  # no such files here: nobody can tell whether it lives
            return cls(uuid.uuid4().hex, pid, "")

    def is_dead(self) -> bool:
        """Known to be dead; False where this process cannot know."""
        this = Process.this()
        return self.host == this.host and _started(self.pid) != self.started


def _started(pid: int) -> str | None:
    """When process `pid` of this host started; None if it is not there or has ended (a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]

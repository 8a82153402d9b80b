"""Who owns a store directory, as far as its lease file tells. Read only.

A process of this host is looked up; of another host only the heartbeat's age is known, by the file's time
stamp, which may be off by the difference of two clocks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvstore.files import Files
from kvstore.lease import LEASE_BYTES, LeaseRecord
from kvstore.process_identity import Process

LeaseState = Literal["alive", "dead", "released", "unknown"]


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The newest lease of a directory."""

    epoch: int
    record: LeaseRecord | None
    """None where the file is torn: its holder died while it wrote, or is writing."""
    moved_s: float
    """When its heartbeat last moved: seconds since the epoch, by the file system's clock."""

    @property
    def on_this_host(self) -> bool:
        return self.record is not None and self.record.process.host == Process.this().host

    @property
    def state(self) -> LeaseState:
        """unknown: held by a process of another host, which cannot be seen from here."""
        if self.record is None:
            return "unknown"
        if self.record.released:
            return "released"
        if self.record.process.is_dead():
            return "dead"
        return "alive" if self.on_this_host else "unknown"

    def holder(self) -> str:
        """`process 4711 of this host`."""
        if self.record is None:
            return "a process that was writing its lease"
        host = "this host" if self.on_this_host else f"another host (boot {self.record.process.host:.8})"
        return f"process {self.record.process.pid} of {host}"

    def answer(self) -> dict[str, Any]:
        """For machines."""
        return {
            "epoch": self.epoch,
            "state": self.state,
            "pid": self.record.process.pid if self.record else None,
            "on_this_host": self.on_this_host,
            "heartbeat_s": self.moved_s,
        }


def read_lease(directory: Path, files: Files) -> LeaseView | None:
    """The newest lease; None where nobody ever took one. Raises OSError."""
    names = (name.partition("lease.")[2] for name in files.list(directory))
    epochs = [name for name in names if name.isdecimal()]
    if not epochs:
        return None
    newest = max(epochs, key=int)
    path = directory / f"lease.{newest}"
    content = bytearray(LEASE_BYTES)
    fd = files.open(path, os.O_RDONLY)
    try:
        moved_s = os.fstat(fd).st_mtime
        num_read = files.preadv(fd, [memoryview(content)], 0)
    finally:
        files.close(fd)
    return LeaseView(int(newest), LeaseRecord.decode(bytes(content[:num_read])), moved_s)

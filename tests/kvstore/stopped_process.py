"""Stops a process as SIGSTOP does, and waits until it is stopped: the signal alone only asks for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_DEADLINE_S = 30.0


def stop_process(pid: int) -> None:
    """Return when every thread of the process stands still; SIGCONT lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    end_s = time.monotonic() + _DEADLINE_S
    while any(_state(task) != "T" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < end_s, f"process {pid} does not stop"
        time.sleep(0.001)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]

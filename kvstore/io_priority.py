"""Linux I/O priority of the calling thread: how a disk's scheduler tells one kind of work from another.

Best effort only: an I/O scheduler that knows no priorities ignores it, and so may the operating system.
"""

from __future__ import annotations

import ctypes
import platform

LOWEST_LEVEL = 7

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS = 1
_CALLING_THREAD = 0
_CLASS_BEST_EFFORT = 2
_CLASS_SHIFT = 13


def set_io_priority(level: int) -> bool:
    """Give the calling thread best-effort `level`, 0 first .. 7 last. False where that cannot be done."""
    assert 0 <= level <= LOWEST_LEVEL, level
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return False
    value = _CLASS_BEST_EFFORT << _CLASS_SHIFT | level
    system = ctypes.CDLL(None, use_errno=True)
    return bool(system.syscall(number, _WHO_PROCESS, _CALLING_THREAD, value) == 0)

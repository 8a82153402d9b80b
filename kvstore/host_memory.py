"""What the kernel says of this host's memory."""

from __future__ import annotations

from pathlib import Path

from kvstore.errors import StagingError

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available_bytes() -> int:
    """Memory the kernel could hand out to new processes without swapping."""
    return _figure("MemAvailable")


def total_bytes() -> int:
    return _figure("MemTotal")


def container_bytes() -> int | None:
    """The most that the container of this process may use; None without a limit below the host's memory."""
    for path in _CGROUP_LIMITS:
        if path.is_file():
            text = path.read_text().strip()
            return int(text) if text.isdecimal() and int(text) < total_bytes() else None
    return None


def _figure(name: str) -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise StagingError(f"{_MEMINFO} has no {name} line; a Linux kernel is needed")

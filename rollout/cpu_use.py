"""CPU seconds of this process and everything it started, read from /proc.

A measurement on a machine that has run out of CPU says little about NICs, so a replay tells how much it used.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU seconds so far, and when."""

    cpu_s: float
    at_s: float

    def use_since(self, earlier: CpuReading) -> float:
        """Share of this machine's cores that was used between the readings, 0..1."""
        wall_s = self.at_s - earlier.at_s
        cores = len(os.sched_getaffinity(0))
        return max(0.0, self.cpu_s - earlier.cpu_s) / (wall_s * cores) if wall_s > 0 else 0.0


def read_cpu() -> CpuReading:
    """The whole tree below this process; what has ended is counted by its parent."""
    parents, seconds = _processes()
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    waiting, total_s = [os.getpid()], 0.0
    while waiting:
        pid = waiting.pop()
        total_s += seconds.get(pid, 0.0)
        waiting += children.get(pid, [])
    return CpuReading(total_s, time.monotonic())


def _processes() -> tuple[dict[int, int], dict[int, float]]:
    """Of every process of the machine: its parent, and its CPU seconds with those of children that ended."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:  # it has ended since
            continue
        fields = stat.rpartition(")")[2].split()
        parents[int(folder.name)] = int(fields[1])
        seconds[int(folder.name)] = sum(int(ticks) for ticks in fields[11:15]) * _TICK_S
    return parents, seconds

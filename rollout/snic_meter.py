"""Bytes read through each storage NIC, second by second, while a replay runs; writes are not counted.

DualPath (arXiv 2602.21548, section 7) compares the busiest storage NIC with the mean in windows of 1 s. The
nodes count; this reads their counters once a window, and once at the end. A window in which little was read,
or that the end cut short, says nothing about balance and is left out of the mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Self

from rollout.summary import SnicFigures

WINDOW_S = 1.0
LEAST_SHARE = 0.1
"""Windows with less than this share of the busiest window's bytes are not judged."""
LEAST_LENGTH = 0.9
"""Nor are those that are shorter than this share of a whole one."""


class SnicMeter:
    """`async with SnicMeter(read): ...`; `read` gives the bytes each node has read since it started."""

    def __init__(self, read: Callable[[], Awaitable[tuple[int, ...]]]) -> None:
        self._read = read
        self._windows: list[tuple[int, ...]] = []
        self._lengths_s: list[float] = []

    async def __aenter__(self) -> Self:
        self._before, self._started_s = await self._read(), time.monotonic()
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._end_window()

    def figures(self) -> SnicFigures:
        return snic_figures(self._windows, self._lengths_s)

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(WINDOW_S)
            await self._end_window()

    async def _end_window(self) -> None:
        now, now_s = await self._read(), time.monotonic()
        if len(now) == len(self._before):  # a node that was silent from its start on has no figure
            self._windows.append(tuple(new - old for new, old in zip(now, self._before, strict=True)))
            self._lengths_s.append(now_s - self._started_s)
        self._before, self._started_s = now, now_s


def snic_figures(windows: Sequence[tuple[int, ...]], lengths_s: Sequence[float]) -> SnicFigures:
    """What the windows amount to: bytes of each node in each, and how even they are."""
    most = max((sum(window) for window in windows), default=0)
    judged = [
        window
        for window, length_s in zip(windows, lengths_s, strict=True)
        if sum(window) > LEAST_SHARE * most and length_s > LEAST_LENGTH * WINDOW_S
    ]
    ratios = [max(window) * len(window) / sum(window) for window in judged]
    return {
        "window_s": WINDOW_S,
        "bytes": [list(window) for window in windows],
        "lengths_s": list(lengths_s),
        "max_over_avg": sum(ratios) / len(ratios) if ratios else None,
    }

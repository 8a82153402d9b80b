"""A node's storage traffic second by second: how evenly storage NICs are used over time.

DualPath (arXiv 2602.21548, section 7) compares the busiest storage NIC with the mean in windows of 1 s.
"""

from __future__ import annotations

from collections import deque

NUM_WINDOWS = 600
"""Seconds kept."""


class SnicWindows:
    """The last seconds in which anything moved. Used from one thread; times are seconds since the epoch."""

    def __init__(self) -> None:
        self._windows: deque[tuple[int, int, int]] = deque(maxlen=NUM_WINDOWS)

    def add(self, now_s: float, *, read_bytes: int = 0, written_bytes: int = 0) -> None:
        """These bytes have moved now."""
        second = int(now_s)
        if self._windows and self._windows[-1][0] >= second:  # the epoch's clock may be set back
            second, read, written = self._windows.pop()
            read_bytes, written_bytes = read + read_bytes, written + written_bytes
        self._windows.append((second, read_bytes, written_bytes))

    def as_tuples(self) -> tuple[tuple[int, int, int], ...]:
        """(unix second, bytes read, bytes written), oldest first; without seconds in which nothing moved."""
        return tuple(self._windows)

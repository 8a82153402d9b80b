"""When a tool that keeps failing is cut off, and when it is tried again.

Pure policy: the caller brings the time.
"""

from __future__ import annotations


class CircuitBreaker:
    """Counts failures in a row; any success forgives them."""

    def __init__(self, failures_to_cut_off: int, cut_off_s: float) -> None:
        self._limit = failures_to_cut_off
        self._cut_off_s = cut_off_s
        self._failures = 0
        self._until_s = float("-inf")

    def refuses_for_s(self, now_s: float) -> float:
        """For how much longer calls are refused; 0: they are not."""
        return max(0.0, self._until_s - now_s)

    def note(self, *, ok: bool, now_s: float) -> None:
        """Take in how a call ended. After a time cut off, one failure is enough to be cut off again."""
        self._failures = 0 if ok else self._failures + 1
        if self._failures >= self._limit:
            self._until_s = now_s + self._cut_off_s

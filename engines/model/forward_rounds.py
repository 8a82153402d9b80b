"""Forwards of an EP group: its engines compute in rounds, and a round ends when its slowest engine does.

The engines of a group exchange activations in every layer, so none gets ahead of the others. Here they share
three numbers of one host's memory: which round it is, when it began, when it will end. An engine that has a
batch opens a round if none runs, takes part if the round has only begun, and else waits for the next one.
Rounds end by the clock: an engine that died, or that waits for KV, moves no end and holds up nobody.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.scheduling.forward_round import may_join
from kvstore.layout import PAGE_BYTES
from kvstore.segment_lock import SegmentLock
from kvstore.shared_segment import SharedSegment
from kvstore.transport import RegionHandle

_NUMBER, _BEGAN, _ENDS = range(3)


class ForwardRounds:
    """One engine's view of its group. Times are on the host's monotonic clock."""

    def __init__(self, state: npt.NDArray[np.float64], lock: AbstractContextManager[None]) -> None:
        """`state` is three numbers, 0 at first, and `lock` guards them."""
        self._state = state
        self._lock = lock

    def join(self, now_s: float, forward_s: float) -> int | None:
        """Take part with a forward of `forward_s` from now on; the round, or None: wait for its end."""
        with self._lock:
            if now_s >= self._state[_ENDS]:
                self._state[:] = self._state[_NUMBER] + 1, now_s, now_s + forward_s
            elif not may_join(now_s, self._state[_BEGAN], self._state[_ENDS]):
                return None
            self._state[_ENDS] = max(self._state[_ENDS], now_s + forward_s)
            return int(self._state[_NUMBER])

    def extend(self, number: int, end_s: float) -> None:
        """This engine will not be through with round `number` before `end_s`."""
        with self._lock:
            if self._state[_NUMBER] == number:
                self._state[_ENDS] = max(self._state[_ENDS], end_s)

    def end_s(self, number: int | None = None) -> float:
        """When the running round ends as far as is known now; 0 if round `number` is over."""
        with self._lock:
            if number is not None and self._state[_NUMBER] != number:
                return 0.0
            return float(self._state[_ENDS])


@dataclass(frozen=True, slots=True)
class SharedRounds:
    """A group's numbers in a shared segment. They live as long as an engine maps them."""

    segment: SharedSegment
    lock: SegmentLock

    @classmethod
    def create(cls, group: str) -> SharedRounds:
        segment = SharedSegment.create(group, PAGE_BYTES)
        return cls(segment, SegmentLock(segment))

    @classmethod
    def attach(cls, handle: RegionHandle) -> SharedRounds:
        """Raises StagingError if the engine that made them is gone."""
        segment = SharedSegment.attach(handle)
        return cls(segment, SegmentLock(segment))

    @property
    def handle(self) -> RegionHandle:
        return self.segment.region

    def rounds(self) -> ForwardRounds:
        return ForwardRounds(self.segment.data.view(np.float64)[:3], self.lock)

    def close(self) -> None:
        self.lock.close()
        self.segment.close()

"""When bytes that are given to a NIC have passed it: the arithmetic of one direction of one NIC.

Pure policy: no clock, no I/O. The figures lie in a row of numbers that its maker may share between processes;
whoever books must hold the row's lock. Every move is booked as a stretch of the NIC's time and is through
when the stretch ends, so the rate is exact however late a waiter wakes.

Two classes (DualPath, arXiv 2602.21548, section 5 and A.1). MODEL interrupts KV at any byte and takes 99 %
of the NIC while KV waits; KV has what is left. So a KV stretch may be pushed back after it was booked:
`due` says by how much. With classes off all moves pass in the order they were booked.

    KV     [start, finish)    start = latest of: the end of earlier KV, of earlier MODEL, the arrival - burst
    MODEL  [start, finish)    start = latest of: the end of earlier MODEL, its arrival; all KV is pushed back
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.traffic import TrafficClass

Row = npt.NDArray[np.float64]
MODEL_SHARE = 0.99
"""Of the NIC, while KV waits."""
BURST_S = 0.002
"""An idle NIC carries this much KV at once: who waits for one move before the next wakes late in between.
MODEL traffic is waited for and counts in latency, so it always takes its time."""
_PIECE_S = 0.008
_LEAST_PIECE_BYTES = 64 << 10

# A row: rate, whether classes count, seconds all KV has been pushed back, then per class five figures.
_RATE, _CLASSES, _PUSHED_S = 0, 1, 2
_FREE_S, _BYTES, _WAITED_S, _MOVES = 0, 1, 2, 3
_FIRST = {TrafficClass.KV: 3, TrafficClass.MODEL: 7}
ROW_LENGTH = 16
"""Numbers in a row: two cache lines, so that no two rows share one."""


@dataclass(frozen=True, slots=True)
class Booking:
    """A stretch of a NIC's time."""

    finish_s: float
    """When the bytes are through, unless MODEL traffic comes before them."""
    pushed_s: float | None
    """How far KV had been pushed back by then, in all. None: nothing can push this stretch."""


@dataclass(frozen=True, slots=True)
class NicUse:
    """What one direction of a NIC has carried since the start, of one class."""

    nbytes: int
    """Through by now; what is booked and still to come is not in it."""
    moves: int
    """Bookings, those to come counted."""
    waited_s: float
    """Seconds they waited for others, all together: what they took beyond their own time on the NIC."""


class NicTimeline:
    """One direction of one NIC. `row` holds all its state; zeros are a NIC that never carried a byte."""

    def __init__(self, row: Row) -> None:
        assert row.shape == (ROW_LENGTH,), row.shape
        self._row = row

    @property
    def bytes_per_s(self) -> float:
        return float(self._row[_RATE])

    def set_rate(self, bytes_per_s: float | None) -> None:
        """For what is booked from now on; None: no limit."""
        if bytes_per_s is not None and not 0 < bytes_per_s < math.inf:
            raise ValueError(f"a NIC's bytes per second must be > 0 and finite, or None; got {bytes_per_s}")
        self._row[_RATE] = math.inf if bytes_per_s is None else bytes_per_s

    def set_classes(self, on: bool) -> None:
        self._row[_CLASSES] = float(on)

    def piece_bytes(self) -> int | None:
        """Most bytes to book at once where others wait too; None: all."""
        rate = self.bytes_per_s
        return None if math.isinf(rate) else max(_LEAST_PIECE_BYTES, int(rate * _PIECE_S))

    def book(
        self, nbytes: int, traffic_class: TrafficClass, *, since_s: float, now_s: float, latest_s: float
    ) -> Booking | None:
        """The next stretch for `nbytes`, or None, and nothing booked, if it would end after `latest_s`.

        `since_s` is when the whole of which this is a part was ready to go: time the NIC has stood idle since
        then is not lost to a waiter that woke late.
        """
        row, service_s = self._row, nbytes / self._row[_RATE]
        first = prior = _FIRST[TrafficClass.KV]
        if row[_CLASSES]:
            first, prior = _FIRST[traffic_class], _FIRST[TrafficClass.MODEL]
        kv_free_s = float(row[_FIRST[TrafficClass.KV] + _FREE_S])
        preempts = first == _FIRST[TrafficClass.MODEL] and kv_free_s > now_s
        if preempts:
            start_s = max(float(row[first + _FREE_S]), since_s)
            finish_s = start_s + service_s / MODEL_SHARE
        else:
            saved_s = BURST_S if traffic_class is TrafficClass.KV else 0.0
            start_s = max(kv_free_s, float(row[prior + _FREE_S]), since_s - saved_s)
            finish_s = start_s + service_s
        if finish_s > latest_s:
            return None
        # A process may be killed between any two of these; each alone leaves figures that make sense.
        row[first + _FREE_S] = finish_s
        if preempts:
            row[_FIRST[TrafficClass.KV] + _FREE_S] += service_s
            row[_PUSHED_S] += service_s
        counts = _FIRST[traffic_class]
        row[counts + _BYTES] += nbytes
        row[counts + _WAITED_S] += max(0.0, finish_s - now_s - service_s)
        row[counts + _MOVES] += 1
        pushable = first == _FIRST[TrafficClass.KV] and bool(row[_CLASSES])
        return Booking(float(finish_s), float(row[_PUSHED_S]) if pushable else None)

    def due(self, booking: Booking) -> float:
        """When the bytes are through, as far as is known now."""
        if booking.pushed_s is None:
            return booking.finish_s
        return booking.finish_s + float(self._row[_PUSHED_S]) - booking.pushed_s

    def use(self, traffic_class: TrafficClass, now_s: float) -> NicUse:
        """What has passed by `now_s`; after a change of rate, off by less than what was booked before it."""
        row, counts = self._row, _FIRST[traffic_class]
        lane = counts if row[_CLASSES] else _FIRST[TrafficClass.KV]
        booked, ahead_s = float(row[counts + _BYTES]), max(0.0, float(row[lane + _FREE_S]) - now_s)
        to_come = 0.0 if math.isinf(self.bytes_per_s) else min(booked, ahead_s * self.bytes_per_s)
        return NicUse(
            nbytes=int(booked - to_come),
            moves=int(row[counts + _MOVES]),
            waited_s=float(row[counts + _WAITED_S]),
        )

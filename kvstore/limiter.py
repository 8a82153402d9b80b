"""The NICs of a node that has none: rates kept by all processes that move bytes for the node.

One machine that plays several nodes has no NIC for each. A node's limiter is a small shared segment with a
timeline for each direction of its storage NIC and of its compute NICs, one for each engine. Who moves bytes
books them and waits until they would have passed. Nothing here moves a byte, and on real hardware there is
no limiter.

A move goes as long as its slowest end: a transfer books at both NICs. It goes in pieces, so that moves that
run at once share a NIC and a changed rate is felt soon. A deadline costs the NIC at most one piece in vain.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.layout import PAGE_BYTES
from kvstore.nic_timeline import ROW_LENGTH, Booking, NicTimeline, NicUse
from kvstore.segment_lock import SegmentLock
from kvstore.shared_segment import SharedSegment
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle

_LONGEST_SLEEP_S = 0.5
"""So that a waiter sees in time that its deadline is over though MODEL traffic pushes it back for ever."""


@dataclass(frozen=True, slots=True)
class LimiterHandle:
    """Names a node's limiter to other processes; picklable."""

    region: RegionHandle
    num_cnics: int


class Lane:
    """One direction of one NIC, as every process of the host sees it. Thread-safe."""

    def __init__(self, timeline: NicTimeline, lock: SegmentLock) -> None:
        self._timeline = timeline
        self._lock = lock

    @property
    def bytes_per_s(self) -> float:
        """Infinite where nothing limits it."""
        return self._timeline.bytes_per_s

    def set_rate(self, bytes_per_s: float | None) -> None:
        """From the next piece on, for everybody. None: no limit. Raises ValueError for what is no rate."""
        with self._lock:
            self._timeline.set_rate(bytes_per_s)

    def piece_bytes(self) -> int | None:
        return self._timeline.piece_bytes()

    def book(
        self, nbytes: int, traffic_class: TrafficClass, *, since_s: float, latest_s: float
    ) -> Booking | None:
        with self._lock:
            return self._timeline.book(
                nbytes, traffic_class, since_s=since_s, now_s=time.monotonic(), latest_s=latest_s
            )

    def due(self, booking: Booking) -> float:
        return self._timeline.due(booking)

    def use(self, traffic_class: TrafficClass) -> NicUse:
        """What has passed by now; exact at any instant, so two looks give the bytes in between."""
        with self._lock:
            return self._timeline.use(traffic_class, time.monotonic())


@dataclass(frozen=True, slots=True)
class Nic:
    """A full-duplex NIC."""

    inbound: Lane
    """Into the node: storage reads, what others send."""
    outbound: Lane

    def set_rate(self, bytes_per_s: float | None) -> None:
        self.inbound.set_rate(bytes_per_s)
        self.outbound.set_rate(bytes_per_s)


class NodeLimiter:
    """All NICs of one node. It lives as long as a process maps it; nobody has to clean up."""

    def __init__(self, segment: SharedSegment, num_cnics: int) -> None:
        self.handle = LimiterHandle(segment.region, num_cnics)
        self._segment = segment
        self.lock = SegmentLock(segment)
        """Guards all timelines; Lane takes it."""
        num_lanes = 2 * (1 + num_cnics)
        rows = segment.data.view(np.float64)[: num_lanes * ROW_LENGTH].reshape(num_lanes, ROW_LENGTH)
        self._timelines = [NicTimeline(row) for row in rows]
        lanes = [Lane(timeline, self.lock) for timeline in self._timelines]
        nics = [Nic(*lanes[first : first + 2]) for first in range(0, num_lanes, 2)]
        self.snic = nics[0]
        self.cnics = tuple(nics[1:])

    @classmethod
    def create(
        cls,
        node_id: str,
        *,
        snic_bytes_per_s: float | None,
        cnic_bytes_per_s: float | None,
        num_cnics: int,
        traffic_classes: bool,
    ) -> NodeLimiter:
        """The node's own, with a compute NIC for each of its engines. Rates are each way; None: no limit."""
        nbytes = 2 * (1 + num_cnics) * ROW_LENGTH * np.dtype(np.float64).itemsize
        segment = SharedSegment.create(node_id, -(-nbytes // PAGE_BYTES) * PAGE_BYTES)
        limiter = cls(segment, num_cnics)
        for timeline in limiter._timelines:
            timeline.set_classes(traffic_classes)
        limiter.snic.set_rate(snic_bytes_per_s)
        for cnic in limiter.cnics:
            cnic.set_rate(cnic_bytes_per_s)
        return limiter

    @classmethod
    def attach(cls, handle: LimiterHandle) -> NodeLimiter:
        """Map the limiter of another process's node, or raise StagingError if its owner is gone."""
        return cls(SharedSegment.attach(handle.region), handle.num_cnics)

    def close(self) -> None:
        """Let go of it; nobody can attach to an owner's after this. Idempotent."""
        self.lock.close()
        self._segment.close()


def carry(
    lanes: Sequence[Lane], nbytes: int, traffic_class: TrafficClass, *, since_s: float, end_s: float
) -> int:
    """Return when `nbytes` have passed every one of `lanes`, and how many bytes that is.

    All of them, or fewer if the rest would come after `end_s`: that is not waited for. Times are those of
    time.monotonic(); the bytes were ready to go at `since_s`.
    """
    done = 0
    while lanes and done < nbytes:
        piece = min([nbytes - done, *(size for lane in lanes if (size := lane.piece_bytes()) is not None)])
        bookings: list[tuple[Lane, Booking]] = []
        for lane in lanes:
            booking = lane.book(piece, traffic_class, since_s=since_s, latest_s=end_s)
            if booking is None:
                return done
            bookings.append((lane, booking))
        through_s = _wait(bookings, end_s)
        if through_s is None:
            return done
        done += piece
        # The next piece was ready then, and not when this thread has woken up.
        since_s = through_s
    return done if lanes else nbytes


def _wait(bookings: Sequence[tuple[Lane, Booking]], end_s: float) -> float | None:
    """Return once all bookings are through, and when they were; None if `end_s` comes first."""
    while True:
        due_s, now_s = max(lane.due(booking) for lane, booking in bookings), time.monotonic()
        if due_s <= now_s:
            return due_s
        if end_s <= now_s:
            return None
        time.sleep(min(due_s - now_s, end_s - now_s, _LONGEST_SLEEP_S))

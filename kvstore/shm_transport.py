"""Transport between processes of one host: map the peer's staging memory and copy.

The plain variant of the seam. A peer is checked on every call: if it died or restarted, its memory may
still be mapped here, but nobody would read what is written there, and what is read is stale.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from kvstore.errors import StagingError, TransferError
from kvstore.pieces import copy_pieces
from kvstore.shared_segment import SharedSegment
from kvstore.traffic import TrafficClass
from kvstore.transport import Bytes, RegionHandle, TransferList, require_inside


class SharedMemoryTransport:
    """A Transport for regions made by StagingHandle.region(). Traffic classes share one memory bus."""

    def __init__(self) -> None:
        self._segments: dict[str, SharedSegment] = {}
        self._lock = threading.Lock()
        self._closed = False

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(region, lists, deadline_s, _fill)

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(region, lists, deadline_s, _put)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._segments:
                self._segments.popitem()[1].close()

    def _move(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        deadline_s: float,
        portions: Callable[[TransferList, Bytes], Iterator[int]],
    ) -> None:
        """Copy every piece, after all of them were checked; raises once the deadline is over."""
        end_s = time.monotonic() + deadline_s
        segment = self._reach(region)
        data = segment.data
        require_inside(region, lists)
        num_before = 0
        for moves in lists:
            for num_done in portions(moves, data):
                if time.monotonic() >= end_s:
                    raise TransferError(
                        f"{num_before + num_done} of {sum(map(len, lists))} moves with {region.node_id} "
                        f"were done after {deadline_s} s"
                    )
            num_before += len(moves)
        if not segment.owner_is_alive():
            raise TransferError(f"{region.node_id} died while bytes moved")

    def _reach(self, region: RegionHandle) -> SharedSegment:
        """The region, mapped once per incarnation."""
        with self._lock:
            if self._closed:
                raise TransferError("the shared memory transport is closed")
            segment = self._segments.get(region.incarnation)
            if segment is not None and segment.region == region and segment.owner_is_alive():
                return segment
            self._drop_dead()
            try:
                segment = SharedSegment.attach(region)
            except StagingError as error:
                raise TransferError(str(error)) from error
            self._segments[region.incarnation] = segment
            return segment

    def _drop_dead(self) -> None:
        """Unmap what belonged to owners that died, so that restarts do not pile up memory."""
        dead = [name for name, segment in self._segments.items() if not segment.owner_is_alive()]
        for name in dead:
            self._segments.pop(name).close()


def _fill(moves: TransferList, data: Bytes) -> Iterator[int]:
    """A read: from the region's `data` to the local ends."""
    return copy_pieces(moves.memory, moves.local_offsets, data, moves.remote_offsets, moves.sizes)


def _put(moves: TransferList, data: Bytes) -> Iterator[int]:
    """A write: from the local ends to the region's `data`."""
    return copy_pieces(data, moves.remote_offsets, moves.memory, moves.local_offsets, moves.sizes)

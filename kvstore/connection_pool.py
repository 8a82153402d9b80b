"""Connections that are lent to one call at a time: a few per peer, incarnation and traffic class.

Decides when a connection is opened, used again and closed. It does not know what a connection is and what is
asked over one. A call that fails takes its connection with it, so that nothing of it is taken for another's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from kvstore.errors import TransferError
from kvstore.tcp_channel import ChannelError, ChannelLateError
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle

MAX_PER_LANE = 4
"""Connections to one incarnation of one peer in one class; a further call waits for one of them."""

_CLOSE_DEADLINE_S = 10.0


class Connection(Protocol):
    """An open way to one incarnation of one memory, in one class. One thread uses it at a time."""

    def is_quiet(self) -> bool:
        """Can it be used again: neither bytes nor its end have come since the last call?"""
        ...

    def shut(self) -> None:
        """End the call that uses it, which raises ChannelError. By any thread; idempotent."""
        ...

    def close(self) -> None:
        """Give it back; by whoever uses it, or while it is at rest. Idempotent."""
        ...

    def abort(self) -> None:
        """As `close`, after a call that failed: drop what is on its way."""
        ...


C = TypeVar("C", bound=Connection)


@dataclass(frozen=True, slots=True)
class _LaneKey:
    """Whose connections, and what for."""

    address: str
    incarnation: str
    traffic_class: TrafficClass


@dataclass(slots=True)
class _Lane(Generic[C]):
    idle: list[C] = field(default_factory=list)
    busy: set[C] = field(default_factory=set)
    num_opening: int = 0

    @property
    def num_open(self) -> int:
        return len(self.idle) + len(self.busy) + self.num_opening


class ConnectionPool(Generic[C]):
    """All connections of one transport. Thread-safe."""

    def __init__(self, name: str, open_connection: Callable[[RegionHandle, TrafficClass, float], C]) -> None:
        """`open_connection` opens one by a time of time.monotonic(), or raises; `name`: the transport's."""
        self._name = name
        self._open = open_connection
        self._lanes: dict[_LaneKey, _Lane[C]] = {}
        self._changed = threading.Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def closed_error(self) -> TransferError:
        return TransferError(f"the {self._name} transport is closed")

    def reason(self, error: Exception, region: RegionHandle, num_moves: int, deadline_s: float) -> str:
        """Why a call failed that had `num_moves` to do with a region."""
        if isinstance(error, ChannelLateError):
            return f"{num_moves} moves with {region.node_id} were not done after {deadline_s} s"
        if self._closed:
            return str(self.closed_error())
        if isinstance(error, ChannelError):
            return f"{region.node_id} at {region.address} is gone: {error}"
        return f"{num_moves} moves with {region.node_id} failed: {error}"

    @contextmanager
    def lend(self, region: RegionHandle, traffic_class: TrafficClass, end_s: float) -> Iterator[C]:
        """A connection for as long as the `with` block runs; dropped, with what it sent, if the block raises.

        Raises TransferError, or ChannelLateError when `end_s` of time.monotonic() is over.
        """
        key = _LaneKey(region.address, region.incarnation, traffic_class)
        connection = self._take_idle(key, end_s)
        if connection is None:
            connection = self._add(key, region, end_s)
        lane = self._lanes[key]
        failed = True
        try:
            yield connection
            failed = False
        finally:
            if failed:
                connection.abort()  # takes its time: others go on meanwhile
            with self._changed:
                lane.busy.discard(connection)
                if not failed and not self._closed:
                    lane.idle.append(connection)
                else:
                    connection.close()
                self._changed.notify_all()

    def close(self) -> bool:
        """Close those at rest and end the calls of those at work; have these calls ended? Idempotent."""
        end_s = time.monotonic() + _CLOSE_DEADLINE_S
        with self._changed:
            self._closed = True
            for lane in self._lanes.values():
                for connection in lane.busy:
                    connection.shut()
                while lane.idle:
                    lane.idle.pop().close()
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: not any(lane.num_open for lane in self._lanes.values()), end_s - time.monotonic()
            )

    def _take_idle(self, key: _LaneKey, end_s: float) -> C | None:
        """One at rest, once there is one; None if a new one may be opened, which then counts as open."""
        with self._changed:
            while True:
                if self._closed:
                    raise self.closed_error()
                lane = self._lanes.setdefault(key, _Lane())
                while lane.idle:
                    connection = lane.idle.pop()
                    if connection.is_quiet():
                        lane.busy.add(connection)
                        return connection
                    connection.close()
                if lane.num_open < MAX_PER_LANE:
                    lane.num_opening += 1
                    self._drop_dead()
                    return None
                if not self._changed.wait(end_s - time.monotonic()):
                    raise ChannelLateError("all connections are at work")

    def _add(self, key: _LaneKey, region: RegionHandle, end_s: float) -> C:
        connection: C | None = None
        try:
            connection = self._open(region, key.traffic_class, end_s)
        finally:
            with self._changed:
                lane = self._lanes[key]
                lane.num_opening -= 1
                if connection is None:
                    self._changed.notify_all()
                elif not self._closed:
                    lane.busy.add(connection)
                else:
                    connection.close()
                    self._changed.notify_all()
        if self._closed:
            raise self.closed_error()
        return connection

    def _drop_dead(self) -> None:
        """Close what leads to peers that are gone, so that restarts do not pile up descriptors."""
        for key, lane in list(self._lanes.items()):
            quiet = []
            for connection in lane.idle:
                if connection.is_quiet():
                    quiet.append(connection)
                else:
                    connection.close()
            lane.idle = quiet
            if not lane.num_open:
                del self._lanes[key]

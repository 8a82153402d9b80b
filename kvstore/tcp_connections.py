"""A client's connections: a few per peer, incarnation and traffic class, lent to one call at a time.

Decides when a connection is opened, used again and closed. It does not know what is asked over one. A call
that fails takes its connection with it, so an answer that comes late is never taken for another request's.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvstore.errors import TransferError
from kvstore.job_token import JobToken
from kvstore.tcp_address import TcpAddress
from kvstore.tcp_channel import ChannelError, ChannelLateError, TcpChannel
from kvstore.tcp_dscp import set_dscp
from kvstore.tcp_handshake import HandshakeError, Hello, greet
from kvstore.tcp_wire import Status, region_id
from kvstore.traffic import ClassSettings, TrafficClass
from kvstore.transport import RegionHandle

MAX_PER_LANE = 4
"""Connections to one incarnation of one peer in one class; a further call waits for one of them."""


class TcpConnection:
    """An open way to one incarnation of one memory, in one class."""

    def __init__(self, channel: TcpChannel) -> None:
        self.channel = channel
        self.request_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class _LaneKey:
    """Whose connections, and what for."""

    address: str
    incarnation: str
    traffic_class: TrafficClass


@dataclass(slots=True)
class _Lane:
    idle: list[TcpConnection] = field(default_factory=list)
    busy: set[TcpConnection] = field(default_factory=set)
    num_opening: int = 0

    @property
    def num_open(self) -> int:
        return len(self.idle) + len(self.busy) + self.num_opening


class TcpConnections:
    """All connections of one transport. Thread-safe."""

    def __init__(self, token: JobToken, classes: Mapping[TrafficClass, ClassSettings]) -> None:
        self._token = token
        self._classes = classes
        self._lanes: dict[_LaneKey, _Lane] = {}
        self._changed = threading.Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @contextmanager
    def lend(
        self, region: RegionHandle, traffic_class: TrafficClass, end_s: float
    ) -> Iterator[TcpConnection]:
        """A connection for as long as the `with` block runs; dropped, with what it sent, if the block raises.

        Raises TransferError, or ChannelLateError when `end_s` of time.monotonic() is over.
        """
        key = _LaneKey(region.address, region.incarnation, traffic_class)
        connection = self._take_idle(key, end_s)
        if connection is None:
            connection = self._add(key, region, end_s)
        lane = self._lanes[key]
        done = False
        try:
            yield connection
            done = True
        finally:
            with self._changed:
                lane.busy.discard(connection)
                if done and not self._closed:
                    lane.idle.append(connection)
                else:
                    connection.channel.abort()
                self._changed.notify_all()

    def close(self) -> None:
        """Close those at rest, and end the calls of those at work. Idempotent."""
        with self._changed:
            self._closed = True
            for lane in self._lanes.values():
                for connection in lane.busy:
                    connection.channel.shut()
                while lane.idle:
                    lane.idle.pop().channel.close()
            self._changed.notify_all()

    def _take_idle(self, key: _LaneKey, end_s: float) -> TcpConnection | None:
        """One at rest, once there is one; None if a new one may be opened, which then counts as open."""
        with self._changed:
            while True:
                if self._closed:
                    raise TransferError("the TCP transport is closed")
                lane = self._lanes.setdefault(key, _Lane())
                while lane.idle:
                    connection = lane.idle.pop()
                    if connection.channel.is_quiet():
                        lane.busy.add(connection)
                        return connection
                    connection.channel.close()
                if lane.num_open < MAX_PER_LANE:
                    lane.num_opening += 1
                    self._drop_dead()
                    return None
                if not self._changed.wait(end_s - time.monotonic()):
                    raise ChannelLateError("all connections are at work")

    def _add(self, key: _LaneKey, region: RegionHandle, end_s: float) -> TcpConnection:
        connection: TcpConnection | None = None
        try:
            connection = TcpConnection(self._open(region, key.traffic_class, end_s))
        finally:
            with self._changed:
                lane = self._lanes[key]
                lane.num_opening -= 1
                if connection is None:
                    self._changed.notify_all()
                elif not self._closed:
                    lane.busy.add(connection)
                else:
                    connection.channel.close()
        if self._closed:
            raise TransferError("the TCP transport is closed")
        return connection

    def _drop_dead(self) -> None:
        """Close what leads to peers that are gone, so that restarts do not pile up descriptors."""
        for key, lane in list(self._lanes.items()):
            quiet = []
            for connection in lane.idle:
                if connection.channel.is_quiet():
                    quiet.append(connection)
                else:
                    connection.channel.close()
            lane.idle = quiet
            if not lane.num_open:
                del self._lanes[key]

    def _open(self, region: RegionHandle, traffic_class: TrafficClass, end_s: float) -> TcpChannel:
        channel = TcpChannel(self._connect(region, traffic_class, end_s))
        try:
            verdict = greet(channel, self._token, Hello(region_id(region.incarnation), traffic_class), end_s)
            if verdict.status is not Status.OK:
                raise TransferError(
                    f"region {region.incarnation} of {region.node_id} is gone: "
                    f"at {region.address} is another incarnation"
                )
            self._require_dscp(traffic_class, verdict.dscp, f"at {region.node_id}")
        except (ChannelError, HandshakeError) as error:
            channel.close()
            if isinstance(error, ChannelLateError):
                raise
            raise TransferError(
                f"{region.node_id} at {region.address} did not let this process in: {error}; "
                "have both the token of the same job?"
            ) from error
        except BaseException:
            channel.close()
            raise
        return channel

    def _connect(self, region: RegionHandle, traffic_class: TrafficClass, end_s: float) -> socket.socket:
        try:
            address = TcpAddress.parse(region.address)
        except ValueError as error:
            raise TransferError(f"{region.node_id} cannot be reached: {error}") from error
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise ChannelLateError("the time is over")
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            dscp = set_dscp(sock, self._classes[traffic_class].dscp)
            self._require_dscp(traffic_class, dscp, "at this end")
            sock.settimeout(left_s)
            sock.connect((address.ip, address.port))
        except TimeoutError as error:
            sock.close()
            raise ChannelLateError("the time is over") from error
        except OSError as error:
            sock.close()
            raise TransferError(f"{region.node_id} is gone: cannot connect to {address}: {error}") from error
        except BaseException:
            sock.close()
            raise
        return sock

    def _require_dscp(self, traffic_class: TrafficClass, dscp: int, where: str) -> None:
        wanted = self._classes[traffic_class].dscp
        if dscp != wanted:
            raise TransferError(
                f"a connection of class {traffic_class.value} has DSCP {dscp} {where}, not {wanted}; "
                "the class table or the system's settings differ there"
            )

"""A client's TCP connections: how one is opened, in one class, to one incarnation of one memory."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping

from kvstore.errors import TransferError
from kvstore.job_token import JobToken
from kvstore.keyed_connect import ask, connect, other_incarnation
from kvstore.tcp_address import TcpAddress
from kvstore.tcp_channel import TcpChannel
from kvstore.tcp_dscp import set_dscp
from kvstore.tcp_handshake import TCP_DIALECT, Hello, Verdict
from kvstore.tcp_wire import Status, region_id
from kvstore.traffic import ClassSettings, TrafficClass
from kvstore.transport import RegionHandle


class TcpConnection:
    """A Connection of kvstore.connection_pool."""

    def __init__(self, channel: TcpChannel) -> None:
        self.channel = channel
        self.request_ids = itertools.count(1)
        self.is_quiet = channel.is_quiet
        self.shut = channel.shut
        self.close = channel.close
        self.abort = channel.abort


class TcpConnector:
    """Opens connections whose DSCP is that of their class, at both ends."""

    def __init__(self, token: JobToken, classes: Mapping[TrafficClass, ClassSettings]) -> None:
        self._token = token
        self._classes = classes

    def open(self, region: RegionHandle, traffic_class: TrafficClass, end_s: float) -> TcpConnection:
        """Raises TransferError, or ChannelLateError when `end_s` of time.monotonic() is over."""
        try:
            address = TcpAddress.parse(region.address)
        except ValueError as error:
            raise TransferError(f"{region.node_id} cannot be reached: {error}") from error

        def prepare(sock: socket.socket) -> None:
            dscp = set_dscp(sock, self._classes[traffic_class].dscp)
            self._require_dscp(traffic_class, dscp, "at this end")

        channel = connect(region, address, end_s, prepare)
        try:
            hello = Hello(region_id(region.incarnation), traffic_class)
            verdict = Verdict.unpack(ask(channel, region, self._token, TCP_DIALECT, hello.pack(), end_s))
            if verdict.status is not Status.OK:
                raise other_incarnation(region)
            self._require_dscp(traffic_class, verdict.dscp, f"at {region.node_id}")
        except BaseException:
            channel.close()
            raise
        return TcpConnection(channel)

    def _require_dscp(self, traffic_class: TrafficClass, dscp: int, where: str) -> None:
        wanted = self._classes[traffic_class].dscp
        if dscp != wanted:
            raise TransferError(
                f"a connection of class {traffic_class.value} has DSCP {dscp} {where}, not {wanted}; "
                "the class table or the system's settings differ there"
            )

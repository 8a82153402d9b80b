"""Serves the memories of this process to peers over TCP: the passive end of TcpTransport.

Decides what may be touched; it does not know what the bytes mean. A thread per connection moves bytes
straight between the socket and the registered memory, so who is slow holds up nobody but itself:

    until the token is proven   as kvstore.keyed_listener says
    between requests            no limit of time
    a request's header, ranges  HEADER_DEADLINE_S
    its bytes                   what its caller said is left of its own deadline

A write whose caller has gone is not begun. One that had begun may still put down bytes that were on their way
when its caller gave up; until this process is known to be dead, their place is not to be used again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.job_token import JobToken
from kvstore.keyed_listener import KeyedListener
from kvstore.staging import StagingMemory
from kvstore.tcp_channel import ChannelError, TcpChannel
from kvstore.tcp_dscp import set_dscp
from kvstore.tcp_handshake import TCP_DIALECT, Hello, Verdict
from kvstore.tcp_pieces import receive_pieces, send_pieces
from kvstore.tcp_wire import (
    HEADER_BYTES,
    RANGE_BYTES,
    Header,
    Kind,
    Status,
    WireError,
    pack_answer,
    region_id,
    unpack_ranges,
)
from kvstore.traffic import CLASS_TABLE, ClassSettings, TrafficClass
from kvstore.transport import Bytes, RegionHandle

logger = logging.getLogger(__name__)

HEADER_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Region:
    """A registered memory."""

    region_id: bytes
    data: Bytes


class TcpServer:
    """A RegionServer on one address of this host. `close` it before the memories it serves."""

    def __init__(
        self,
        token: JobToken,
        *,
        listen: str = "127.0.0.1",
        port: int = 0,
        classes: Mapping[TrafficClass, ClassSettings] = CLASS_TABLE,
    ) -> None:
        """Listen on one address, at a free port if `port` is 0; raises StagingError if it cannot be."""
        self._classes = classes
        self._regions: dict[bytes, _Region] = {}
        self._lock = threading.Lock()
        self._listener = KeyedListener(token, self._serve, listen=listen, port=port)
        self.address = self._listener.address
        self._listener.start()

    def register(self, staging: StagingMemory) -> RegionHandle:
        handle = staging.handle
        region = _Region(region_id(handle.incarnation), staging.buffer)
        with self._lock:
            self._regions[region.region_id] = region
        return RegionHandle(handle.node_id, handle.incarnation, handle.nbytes, str(self.address))

    def close(self) -> None:
        with self._lock:
            self._regions.clear()
        self._listener.close()

    def _serve(self, channel: TcpChannel) -> None:
        """One connection from its first byte to its last, on a thread of its own."""
        try:
            region = self._admit(channel)
            while region is not None:
                channel.wait_for_bytes()
                _answer_request(channel, region)
        except WireError as error:
            logger.info("closed a connection to %s: %s", self.address, error)

    def _admit(self, channel: TcpChannel) -> _Region | None:
        """The region that the client may use; None if there is none of that incarnation here."""
        region: _Region | None = None

        def judge(wish: bytes) -> bytes:
            nonlocal region
            hello = Hello.unpack(wish)
            with self._lock:
                region = self._regions.get(hello.region_id)
            status = Status.OTHER_INCARNATION if region is None else Status.OK
            return Verdict(status, set_dscp(channel.socket, self._classes[hello.traffic_class].dscp)).pack()

        self._listener.admit(channel, TCP_DIALECT, judge)
        return region


def _answer_request(channel: TcpChannel, region: _Region) -> None:
    """Do what the next request asks, or tell why not and raise WireError."""
    begun_s = time.monotonic()
    header = Header.unpack(_receive(channel, HEADER_BYTES, begun_s + HEADER_DEADLINE_S))
    try:
        if header.region_id != region.region_id:
            raise WireError(Status.OTHER_INCARNATION, "a request was for another incarnation")
        table = _receive(channel, header.num_ranges * RANGE_BYTES, begun_s + HEADER_DEADLINE_S)
        offsets, sizes = unpack_ranges(table, header.nbytes, len(region.data))
    except WireError as error:
        channel.send([memoryview(pack_answer(error.status, header.request_id))], begun_s + HEADER_DEADLINE_S)
        raise
    end_s = begun_s + header.deadline_ms / 1000
    answer = memoryview(pack_answer(Status.OK, header.request_id))
    if header.kind is Kind.READ:
        channel.send([answer], end_s)
        send_pieces(channel, region.data, offsets, sizes, end_s)
        return
    if channel.is_hung_up():
        raise ChannelError("the caller of a write is gone")
    receive_pieces(channel, region.data, offsets, sizes, end_s)
    channel.send([answer], end_s)


def _receive(channel: TcpChannel, nbytes: int, end_s: float) -> bytearray:
    data = bytearray(nbytes)
    channel.receive([memoryview(data)], end_s)
    return data

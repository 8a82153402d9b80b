"""Serves the memories of this process to peers over TCP: the passive end of TcpTransport.

Decides who is let in and what may be touched; it does not know what the bytes mean. A thread per connection
moves bytes straight between the socket and the registered memory, so who is slow holds up nobody but itself:

    until the token is proven   HANDSHAKE_DEADLINE_S, at most MAX_STRANGERS at once: the oldest makes room
    between requests            no limit of time
    a request's header, ranges  HEADER_DEADLINE_S
    its bytes                   what its caller said is left of its own deadline

A write whose caller has gone is not begun. One that had begun may still put down bytes that were on their way
when its caller gave up; until this process is known to be dead, their place is not to be used again.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from kvstore.errors import StagingError
from kvstore.job_token import JobToken
from kvstore.staging import StagingMemory
from kvstore.tcp_address import TcpAddress
from kvstore.tcp_channel import ChannelError, TcpChannel
from kvstore.tcp_dscp import set_dscp
from kvstore.tcp_handshake import HandshakeError, Hello, Verdict, admit
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

MAX_STRANGERS = 64
HANDSHAKE_DEADLINE_S = 5.0
HEADER_DEADLINE_S = 10.0
_BACKLOG = 256
_CLOSE_DEADLINE_S = 10.0
_PAUSE_S = 0.1
"""Before accepting is tried again, when the process has no descriptor left for a connection."""


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
        self._token = token
        self._classes = classes
        self._listener = _listen(listen, port)
        ip, port = self._listener.getsockname()[:2]
        self.address = TcpAddress(ip, port)
        self._regions: dict[bytes, _Region] = {}
        self._strangers: dict[TcpChannel, None] = {}
        self._threads: dict[TcpChannel, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name=f"accept-{port}", daemon=True)
        self._accepting.start()

    def register(self, staging: StagingMemory) -> RegionHandle:
        handle = staging.handle
        region = _Region(region_id(handle.incarnation), staging.buffer)
        with self._lock:
            self._regions[region.region_id] = region
        return RegionHandle(handle.node_id, handle.incarnation, handle.nbytes, str(self.address))

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            self._regions.clear()
            threads = dict(self._threads)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for channel in threads:
            channel.shut()
        end_s = time.monotonic() + _CLOSE_DEADLINE_S
        for thread in (self._accepting, *threads.values()):
            thread.join(max(0.0, end_s - time.monotonic()))

    # -- connections ---------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:  # closed; or no descriptor is left
                if not self._closed.wait(_PAUSE_S):
                    logger.warning("cannot take a connection to %s: %s", self.address, error)
                continue
            try:
                self._let_in(sock)
            except (OSError, RuntimeError) as error:  # it is gone already; or no thread is to be had
                sock.close()
                logger.warning("cannot serve a connection to %s: %s", self.address, error)

    def _let_in(self, sock: socket.socket) -> None:
        channel = TcpChannel(sock)
        thread = threading.Thread(target=self._serve, args=[channel], name="tcp-serve", daemon=True)
        with self._lock:
            if self._closed.is_set():
                channel.close()
                return
            if len(self._strangers) >= MAX_STRANGERS:
                # A client of the job is through within milliseconds: the oldest is none.
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.shut()
            thread.start()
            self._strangers[channel] = None
            self._threads[channel] = thread

    def _serve(self, channel: TcpChannel) -> None:
        """One connection from its first byte to its last, on a thread of its own."""
        try:
            region = self._admit(channel)
            while region is not None:
                channel.wait_for_bytes()
                _answer_request(channel, region)
        except (HandshakeError, WireError) as error:
            logger.info("closed a connection to %s: %s", self.address, error)
        except (ChannelError, OSError) as error:
            logger.debug("a connection to %s ended: %s", self.address, error)
            channel.abort()
        finally:
            with self._lock:
                self._strangers.pop(channel, None)
                self._threads.pop(channel, None)
            channel.close()

    def _admit(self, channel: TcpChannel) -> _Region | None:
        """The region that the client may use; None if there is none of that incarnation here."""

        def judge(hello: Hello) -> Verdict:
            status = Status.OK if hello.region_id in self._regions else Status.OTHER_INCARNATION
            return Verdict(status, set_dscp(channel.socket, self._classes[hello.traffic_class].dscp))

        hello, _ = admit(channel, self._token, judge, time.monotonic() + HANDSHAKE_DEADLINE_S)
        with self._lock:
            self._strangers.pop(channel, None)
            return self._regions.get(hello.region_id)


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


def _listen(host: str, port: int) -> socket.socket:
    """Listen on exactly one address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(address[0]).is_unspecified:
            raise StagingError(
                f"transport.listen={host!r} would open staging memory on every network of this machine; "
                "name one address, for example 127.0.0.1"
            )
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StagingError(f"cannot serve staging memory at transport.listen={host!r}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StagingError(
            f"cannot serve staging memory at transport.listen={host!r}, port {port}: {error}"
        ) from error
    return listener

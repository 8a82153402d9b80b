"""What a client of the TCP transport wants, and what the server says to it, in the keyed handshake."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvstore.job_token import JobToken
from kvstore.keyed_handshake import Dialect, HandshakeError
from kvstore.keyed_handshake import greet as greet_in
from kvstore.tcp_channel import TcpChannel
from kvstore.tcp_wire import CLASS_CODES, Status
from kvstore.traffic import TrafficClass

_HELLO = struct.Struct("!16sB")
_VERDICT = struct.Struct("!BB")
_CLASSES = {code: traffic_class for traffic_class, code in CLASS_CODES.items()}
TCP_DIALECT = Dialect(b"DPTCP001", _HELLO.size, _VERDICT.size)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client wants of a server."""

    region_id: bytes
    traffic_class: TrafficClass

    def pack(self) -> bytes:
        return _HELLO.pack(self.region_id, CLASS_CODES[self.traffic_class])

    @classmethod
    def unpack(cls, data: bytes) -> Hello:
        """Raises HandshakeError if it names no class."""
        region_id, class_code = _HELLO.unpack(data)
        if class_code not in _CLASSES:
            raise HandshakeError(f"it asks for traffic class {class_code}, which does not exist")
        return cls(region_id, _CLASSES[class_code])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a server says to a client that knows the token."""

    status: Status
    dscp: int
    """What the server's socket has, 0..63."""

    def pack(self) -> bytes:
        return _VERDICT.pack(self.status, self.dscp)

    @classmethod
    def unpack(cls, data: bytes) -> Verdict:
        status, dscp = _VERDICT.unpack(data)
        return cls(Status(status), dscp)


def greet(channel: TcpChannel, token: JobToken, hello: Hello, end_s: float) -> Verdict:
    """The client's part of the handshake. Raises HandshakeError or ChannelError."""
    return Verdict.unpack(greet_in(channel, token, TCP_DIALECT, hello.pack(), end_s))

"""How both ends of a TCP connection show that they know the job's token, which never travels.

    client  hello      magic, client's nonce, region id, traffic class
    server  challenge  magic, server's nonce
    client  proof      HMAC-SHA256(token, "client" + hello + challenge)
    server  welcome    status, DSCP, HMAC-SHA256(token, "server" + hello + challenge + status + DSCP)

A server tells nothing but its nonce to whoever does not know the token. Both ends know then that the other is
of their job; what follows is neither encrypted nor signed, as on an RDMA fabric.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass

from kvstore.job_token import JobToken
from kvstore.tcp_channel import TcpChannel
from kvstore.tcp_wire import CLASS_CODES, Status
from kvstore.traffic import TrafficClass

_MAGIC = b"DPTCP001"
_HELLO = struct.Struct("!8s32s16sB")
_CHALLENGE = struct.Struct("!8s32s")
_VERDICT = struct.Struct("!BB")
_NONCE_BYTES = 32
_MAC_BYTES = 32
_CLASSES = {code: traffic_class for traffic_class, code in CLASS_CODES.items()}


class HandshakeError(Exception):
    """The other end is not of this job, or does not speak this protocol."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client wants of a server."""

    region_id: bytes
    traffic_class: TrafficClass


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a server says to a client that knows the token."""

    status: Status
    dscp: int
    """What the server's socket has, 0..63."""


def greet(channel: TcpChannel, token: JobToken, hello: Hello, end_s: float) -> Verdict:
    """The client's part. Raises HandshakeError or ChannelError."""
    opening = _HELLO.pack(
        _MAGIC, secrets.token_bytes(_NONCE_BYTES), hello.region_id, CLASS_CODES[hello.traffic_class]
    )
    channel.send([memoryview(opening)], end_s)
    challenge = _receive(channel, _CHALLENGE.size, end_s)
    if _CHALLENGE.unpack(challenge)[0] != _MAGIC:
        raise HandshakeError("what listens there is no server of this transport")
    channel.send([memoryview(_mac(token, b"client", opening, challenge))], end_s)
    answer = _receive(channel, _VERDICT.size + _MAC_BYTES, end_s)
    verdict, mac = answer[: _VERDICT.size], answer[_VERDICT.size :]
    if not hmac.compare_digest(mac, _mac(token, b"server", opening, challenge, verdict)):
        raise HandshakeError("the server there does not know the job's token")
    status, dscp = _VERDICT.unpack(verdict)
    return Verdict(Status(status), dscp)


def admit(
    channel: TcpChannel, token: JobToken, judge: Callable[[Hello], Verdict], end_s: float
) -> tuple[Hello, Verdict]:
    """The server's part; `judge` is asked only about a client that knows the token.

    Raises HandshakeError or ChannelError; the connection must then be closed.
    """
    opening = _receive(channel, _HELLO.size, end_s)
    magic, _, region_id, class_code = _HELLO.unpack(opening)
    if magic != _MAGIC or class_code not in _CLASSES:
        raise HandshakeError("it does not speak this protocol")
    challenge = _CHALLENGE.pack(_MAGIC, secrets.token_bytes(_NONCE_BYTES))
    channel.send([memoryview(challenge)], end_s)
    proof = _receive(channel, _MAC_BYTES, end_s)
    if not hmac.compare_digest(proof, _mac(token, b"client", opening, challenge)):
        raise HandshakeError("it does not know the job's token")
    hello = Hello(region_id, _CLASSES[class_code])
    verdict = judge(hello)
    said = _VERDICT.pack(verdict.status, verdict.dscp)
    channel.send([memoryview(said + _mac(token, b"server", opening, challenge, said))], end_s)
    return hello, verdict


def _receive(channel: TcpChannel, nbytes: int, end_s: float) -> bytes:
    data = bytearray(nbytes)
    channel.receive([memoryview(data)], end_s)
    return bytes(data)


def _mac(token: JobToken, role: bytes, *parts: bytes) -> bytes:
    """All parts have fixed sizes, so what is signed can be read in one way only."""
    return hmac.digest(token.secret, role + b"".join(parts), "sha256")

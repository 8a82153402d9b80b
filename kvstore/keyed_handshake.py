"""How both ends of a connection show that they know the job's token, which never travels.

    client  opening    magic, client's nonce, wish
    server  challenge  magic, server's nonce
    client  proof      HMAC-SHA256(token, "client" + opening + challenge)
    server  answer     answer, HMAC-SHA256(token, "server" + opening + challenge + answer)

A server tells nothing but its nonce to whoever does not know the token, and nobody else's wish is looked at.
Both ends know then that the other is of their job; what follows is neither encrypted nor signed, as on an
RDMA fabric. What a wish and an answer mean is the transport's affair: here they are bytes of a fixed number.
"""

from __future__ import annotations

import hmac
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvstore.job_token import JobToken
from kvstore.tcp_channel import TcpChannel

_HEAD = struct.Struct("!8s32s")
_NONCE_BYTES = 32
_MAC_BYTES = 32


class HandshakeError(Exception):
    """The other end is not of this job, or does not speak this protocol."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What tells one transport's handshakes from another's."""

    magic: bytes
    """8 bytes."""
    wish_bytes: int
    answer_bytes: int


def greet(channel: TcpChannel, token: JobToken, dialect: Dialect, wish: bytes, end_s: float) -> bytes:
    """The client's part: returns the server's answer. Raises HandshakeError or ChannelError."""
    assert len(wish) == dialect.wish_bytes, (len(wish), dialect)
    opening = _HEAD.pack(dialect.magic, secrets.token_bytes(_NONCE_BYTES)) + wish
    channel.send([memoryview(opening)], end_s)
    challenge = _receive(channel, _HEAD.size, end_s)
    if _HEAD.unpack(challenge)[0] != dialect.magic:
        raise HandshakeError("what listens there is no server of this transport")
    channel.send([memoryview(_mac(token, b"client", opening, challenge))], end_s)
    said = _receive(channel, dialect.answer_bytes + _MAC_BYTES, end_s)
    answer, mac = said[: dialect.answer_bytes], said[dialect.answer_bytes :]
    if not hmac.compare_digest(mac, _mac(token, b"server", opening, challenge, answer)):
        raise HandshakeError("the server there does not know the job's token")
    return answer


def admit(
    channel: TcpChannel, token: JobToken, dialect: Dialect, judge: Callable[[bytes], bytes], deadline_s: float
) -> None:
    """The server's part; `judge` makes the answer to a wish, and is asked only by who knows the token.

    The client has `deadline_s` for its proof, and as much again to take the answer. Raises HandshakeError or
    ChannelError; the connection must then be closed.
    """
    end_s = time.monotonic() + deadline_s
    opening = _receive(channel, _HEAD.size + dialect.wish_bytes, end_s)
    if not opening.startswith(dialect.magic):
        raise HandshakeError("it does not speak this protocol")
    challenge = _HEAD.pack(dialect.magic, secrets.token_bytes(_NONCE_BYTES))
    channel.send([memoryview(challenge)], end_s)
    proof = _receive(channel, _MAC_BYTES, end_s)
    if not hmac.compare_digest(proof, _mac(token, b"client", opening, challenge)):
        raise HandshakeError("it does not know the job's token")
    answer = judge(opening[_HEAD.size :])
    assert len(answer) == dialect.answer_bytes, (len(answer), dialect)
    said = answer + _mac(token, b"server", opening, challenge, answer)
    channel.send([memoryview(said)], time.monotonic() + deadline_s)


def _receive(channel: TcpChannel, nbytes: int, end_s: float) -> bytes:
    data = bytearray(nbytes)
    channel.receive([memoryview(data)], end_s)
    return bytes(data)


def _mac(token: JobToken, role: bytes, *parts: bytes) -> bytes:
    """All parts have fixed sizes, so what is signed can be read in one way only."""
    return hmac.digest(token.secret, role + b"".join(parts), "sha256")

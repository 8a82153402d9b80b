"""What both ends of a queue pair tell each other in the keyed handshake. Pure: bytes in, numbers out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from kvstore.keyed_handshake import Dialect, HandshakeError
from kvstore.tcp_wire import CLASS_CODES
from kvstore.traffic import TrafficClass

_END = struct.Struct("!IIHBBBB16s")
_WISH = struct.Struct("!16sBH")
_ANSWER = struct.Struct("!BBBIQQ")
_CLASSES = {code: traffic_class for traffic_class, code in CLASS_CODES.items()}
VERBS_DIALECT = Dialect(b"DPVERBS2", _WISH.size + _END.size, _ANSWER.size + _END.size)


class Status(IntEnum):
    """What becomes of a wish."""

    OK = 0
    OTHER_INCARNATION = 1
    CANNOT_CONNECT = 2
    """The server could not make a queue pair for this client; its log says why."""


@dataclass(frozen=True, slots=True)
class QueuePairEnd:
    """What the other end needs to know of a queue pair to connect to it."""

    qp_num: int
    first_psn: int
    """Of the packets it sends. Random: packets of a queue pair that had the number before do not fit."""
    lid: int
    link: int
    """A Link's value."""
    mtu_code: int
    """enum ibv_mtu: 128 << mtu_code bytes."""
    reads_answered: int
    reads_asked: int
    gid: bytes
    """16 bytes."""

    def pack(self) -> bytes:
        return _END.pack(
            self.qp_num,
            self.first_psn,
            self.lid,
            self.link,
            self.mtu_code,
            self.reads_answered,
            self.reads_asked,
            self.gid,
        )

    @classmethod
    def unpack(cls, data: bytes) -> QueuePairEnd:
        return cls(*_END.unpack(data))


NO_END = QueuePairEnd(0, 0, 0, 0, 0, 0, 0, bytes(16))


@dataclass(frozen=True, slots=True)
class PathClass:
    """How the packets that a queue pair sends are marked."""

    service_level: int
    traffic_class: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants of a server."""

    region_id: bytes
    traffic_class: TrafficClass
    rail: int
    """Which of the server's ports to use; counted round if it has fewer."""
    end: QueuePairEnd

    def pack(self) -> bytes:
        return _WISH.pack(self.region_id, CLASS_CODES[self.traffic_class], self.rail) + self.end.pack()

    @classmethod
    def unpack(cls, data: bytes) -> Wish:
        """Raises HandshakeError if it names no class."""
        region_id, class_code, rail = _WISH.unpack(data[: _WISH.size])
        if class_code not in _CLASSES:
            raise HandshakeError(f"it asks for traffic class {class_code}, which does not exist")
        return cls(region_id, _CLASSES[class_code], rail, QueuePairEnd.unpack(data[_WISH.size :]))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says to a client that knows the token. With a status that is not OK the rest is zero."""

    status: Status
    path: PathClass
    """As read back from the server's queue pair: what it sends to answer an RDMA READ is marked so."""
    rkey: int
    address: int
    """Of the region, in the server's process."""
    nbytes: int
    end: QueuePairEnd

    @classmethod
    def refusal(cls, status: Status) -> Answer:
        return cls(status, PathClass(0, 0), 0, 0, 0, NO_END)

    def pack(self) -> bytes:
        level, traffic_class = self.path.service_level, self.path.traffic_class
        head = _ANSWER.pack(self.status, level, traffic_class, self.rkey, self.address, self.nbytes)
        return head + self.end.pack()

    @classmethod
    def unpack(cls, data: bytes) -> Answer:
        status, level, traffic_class, rkey, address, nbytes = _ANSWER.unpack(data[: _ANSWER.size])
        end = QueuePairEnd.unpack(data[_ANSWER.size :])
        return cls(Status(status), PathClass(level, traffic_class), rkey, address, nbytes, end)

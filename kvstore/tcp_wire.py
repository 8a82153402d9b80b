"""What requests and answers look like on a TCP connection. Pure: bytes in, numbers out.

    request   header: magic, kind, milliseconds left, number of ranges, request id, region id, sum of bytes
              ranges: (offset, nbytes) each, in the region
              for a write: the bytes, in the order of the ranges
    answer    header: magic, status, request id
              for a read that was done: the bytes, in the order of the ranges

Integers are unsigned and big-endian. A request is checked as a whole before any byte of it moves. What a
sender's list and a receiver's memory look like is their own affair: between them is one row of bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from kvstore.pieces import merge_neighbours
from kvstore.traffic import TrafficClass
from kvstore.transport import Offsets

MAX_RANGES = 1 << 16
"""Ranges of one request: their table is 1 MiB at most, which is all that a server ever sets aside for one."""
MAX_REQUEST_BYTES = 1 << 36
MAX_REQUEST_MS = 3_600_000
CLASS_CODES = {TrafficClass.MODEL: 0, TrafficClass.KV: 1}

_MAGIC = 0x44505831
_HEADER = struct.Struct("!IBxxxIIQ16sQ")
_RANGE = struct.Struct("!QQ")
_RANGE_NUMBERS = np.dtype(">u8")
_ANSWER = struct.Struct("!IBxxxQ")
HEADER_BYTES = _HEADER.size
RANGE_BYTES = _RANGE.size
ANSWER_BYTES = _ANSWER.size


class Kind(IntEnum):
    """Which way the bytes go, as seen from who asks."""

    READ = 1
    WRITE = 2


class Status(IntEnum):
    """What became of a request."""

    OK = 0
    OTHER_INCARNATION = 1
    MALFORMED = 2
    OUTSIDE_REGION = 3


class WireError(Exception):
    """What arrived is not what may be asked for; `status` is the answer to it."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Header:
    """A request without its ranges."""

    kind: Kind
    deadline_ms: int
    num_ranges: int
    request_id: int
    region_id: bytes
    nbytes: int

    def pack(self) -> bytes:
        return _HEADER.pack(
            _MAGIC,
            self.kind,
            self.deadline_ms,
            self.num_ranges,
            self.request_id,
            self.region_id,
            self.nbytes,
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Header:
        """Raises WireError unless every field is within its bounds."""
        magic, kind, deadline_ms, num_ranges, request_id, region_id, nbytes = _HEADER.unpack(data)
        if magic != _MAGIC:
            raise WireError(Status.MALFORMED, f"a request began with {magic:#010x}, not {_MAGIC:#010x}")
        for name, value, most in (
            ("kind", kind, Kind.WRITE),
            ("milliseconds", deadline_ms, MAX_REQUEST_MS),
            ("ranges", num_ranges, MAX_RANGES),
            ("bytes", nbytes, MAX_REQUEST_BYTES),
        ):
            if not 1 <= value <= most:
                raise WireError(Status.MALFORMED, f"{name} of a request must be 1..{most}, got {value}")
        return cls(Kind(kind), deadline_ms, num_ranges, request_id, region_id, nbytes)


def region_id(incarnation: str) -> bytes:
    """16 bytes that stand for one incarnation of one memory."""
    return hashlib.blake2b(incarnation.encode(), digest_size=16).digest()


def pack_ranges(offsets: Offsets, sizes: Offsets) -> tuple[bytes, int]:
    """The (non-empty) ranges, neighbours merged, and how many they are then."""
    offsets, sizes = merge_neighbours(offsets, sizes)
    return np.stack((offsets, sizes), 1).astype(_RANGE_NUMBERS).tobytes(), len(offsets)


def unpack_ranges(data: bytes | bytearray, request_bytes: int, region_bytes: int) -> tuple[Offsets, Offsets]:
    """Offset and size of every range; raises WireError unless all are in the region and add up."""
    offsets, sizes = np.frombuffer(data, _RANGE_NUMBERS).astype(np.uint64).reshape(-1, 2).T
    # In this order no sum of two of a sender's numbers is made, which may wrap round to a small one.
    outside = (sizes == 0) | (sizes > region_bytes) | (offsets > region_bytes - sizes)
    if outside.any():
        first = int(outside.argmax())
        raise WireError(
            Status.OUTSIDE_REGION,
            f"{sizes[first]} bytes at {offsets[first]} of a region of {region_bytes} were asked for",
        )
    total = int(sizes.sum())
    if total != request_bytes:
        raise WireError(Status.MALFORMED, f"ranges of {total} bytes were announced as {request_bytes}")
    return offsets.astype(np.int64), sizes.astype(np.int64)


def pack_answer(status: Status, request_id: int) -> bytes:
    return _ANSWER.pack(_MAGIC, status, request_id)


def unpack_answer(data: bytes | bytearray, request_id: int) -> Status:
    """Raises WireError unless it is an answer to this very request."""
    magic, status, answered_id = _ANSWER.unpack(data)
    if magic != _MAGIC or answered_id != request_id or status not in iter(Status):
        raise WireError(Status.MALFORMED, f"an answer to request {answered_id} came for {request_id}")
    return Status(status)

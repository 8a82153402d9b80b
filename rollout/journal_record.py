"""What is written of a trajectory while it runs, and how it looks as bytes.

One record for each finished turn, with the tokens that it added, and one for the trajectory's end. A frame is
a record with its length and its CRC32C before it, so a reader knows a torn end when it sees one. Pure: no
files.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence

import google_crc32c
import msgspec

from engines.types import PhaseSeconds
from rollout.types import Segment, StopReason, Turn

FORMAT = 1
_HEAD = struct.Struct("<II")
"""Bytes of the record, and their CRC32C."""


class SegmentTail(msgspec.Struct, frozen=True, array_like=True):
    """What a segment has gained: the bytes of its four arrays."""

    segment: int
    columns: tuple[bytes, bytes, bytes, bytes]

    @classmethod
    def of(cls, index: int, segment: Segment, start: int) -> SegmentTail:
        """Segment number `index` from token `start` on."""
        token_ids, mask, logprobs, versions = (column[start:].tobytes() for column in _columns(segment))
        return cls(index, (token_ids, mask, logprobs, versions))

    def append_to(self, segment: Segment) -> None:
        for column, data in zip(_columns(segment), self.columns, strict=True):
            column.frombytes(data)


class StepBegan(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """The first record of a file: which step goes on in it, and under which weights."""

    format: int
    step: int
    weights_version: int
    weights_id: str
    samples: str
    """Digest of which samples the step has."""


class TurnEnded(msgspec.Struct, frozen=True, array_like=True, tag="turn"):
    """A trajectory's turn is through, its tool's answer included."""

    trajectory_id: str
    attempt: int
    index: int
    """From 0; what came before it is forgotten then."""
    started_s: float
    """When the trajectory started, on the step's clock."""
    elapsed_s: float
    """How long it has been running."""
    tails: tuple[SegmentTail, ...]
    turn: Turn


class TrajectoryEnded(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """It will not be played on."""

    trajectory_id: str
    task_id: str
    group_id: str
    sample_index: int
    attempt: int
    num_turns: int
    started_s: float
    duration_s: float
    tails: tuple[SegmentTail, ...]
    phases: PhaseSeconds
    reward: float
    stop_reason: StopReason
    error: str | None


Record = StepBegan | TurnEnded | TrajectoryEnded
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def frame(record: Record) -> bytes:
    """The record as it stands in a file."""
    content = _encoder.encode(record)
    return _HEAD.pack(len(content), google_crc32c.value(content)) + content


def unframe(data: bytes) -> Iterator[tuple[Record, int]]:
    """The records that `data` begins with, each with where it ends; nothing after the first damage."""
    start = 0
    while start + _HEAD.size <= len(data):
        num_bytes, checksum = _HEAD.unpack_from(data, start)
        content = data[start + _HEAD.size : start + _HEAD.size + num_bytes]
        if len(content) < num_bytes or google_crc32c.value(content) != checksum:
            return
        start += _HEAD.size + num_bytes
        yield _decoder.decode(content), start


def writable(text: str) -> str:
    """The same text, unless it has half a surrogate pair, which no file can hold: that is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _columns(segment: Segment) -> Sequence[array[int] | array[float]]:
    return (segment.token_ids, segment.loss_mask, segment.logprobs, segment.weights_versions)

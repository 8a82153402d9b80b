"""What recovery found in one segment: which blocks, where. Compact: a store may hold millions of blocks."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from kvstore.keys import KEY_BYTES, BlockKey, WeightsId
from kvstore.layout import BlockLayout
from kvstore.store import BlockLocation


@dataclass(frozen=True, slots=True)
class SegmentContents:
    """One readable segment. Records stand in the order they were appended."""

    name: str
    weights_id: WeightsId
    layout: BlockLayout
    writer_id: str
    created_s: float
    """Its writer's wall clock, seconds since the epoch: to show and to order versions by."""
    sealed: bool
    """Did its writer end it with a footer?"""
    nbytes: int
    """Of the file."""
    record_bytes: int
    keys: bytes
    """KEY_BYTES per record."""
    parents: bytes
    """KEY_BYTES per record: the key of the block before it, a chain root for a context's first."""
    offsets: array[int]
    """Per record, 'Q': bytes from the file's start."""
    checksums: array[int]
    """Per record, 'I': CRC32C of the record's header, as in BlockLocation."""

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, record: int) -> BlockKey:
        return BlockKey(self.keys[record * KEY_BYTES : (record + 1) * KEY_BYTES])

    def parent(self, record: int) -> BlockKey:
        return BlockKey(self.parents[record * KEY_BYTES : (record + 1) * KEY_BYTES])

    def location(self, record: int) -> BlockLocation:
        return BlockLocation(self.name, self.offsets[record], self.record_bytes, self.checksums[record])


@dataclass(frozen=True, slots=True)
class BadSegment:
    """A file that is named like a segment and cannot be used as one."""

    name: str
    nbytes: int
    reason: str
    """Short, the same for all files of one trouble: it is counted by."""

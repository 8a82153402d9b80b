"""Stored blocks of one context in columns: what a lookup finds, and what a read plan carries to who reads.

A prompt of 30k tokens hits hundreds of blocks. One object a block costs a scheduler more than all it decides,
so blocks stay columns from the index to the process that reads them, and an IndexedBlock is made only for
who looks at one. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from kvstore.keys import KEY_BYTES, BlockKey
from kvstore.pickled_by_fields import pickled_by_fields
from kvstore.store import BlockLocation


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class IndexedBlock:
    """A stored block."""

    key: BlockKey
    location: BlockLocation


@dataclass(frozen=True, slots=True)
class SegmentColumn:
    """One of the segments that blocks lie in."""

    name: str
    record_bytes: int


class IndexedBlocks(Sequence[IndexedBlock]):
    """An immutable sequence of stored blocks. Slices are cheap; it is equal to any sequence of the same."""

    __slots__ = ("checksums", "keys", "offsets", "segment_of", "segments")

    def __init__(
        self,
        keys: tuple[BlockKey, ...],
        segments: tuple[SegmentColumn, ...],
        segment_of: npt.NDArray[np.uint16],
        offsets: npt.NDArray[np.uint64],
        checksums: npt.NDArray[np.uint32],
    ) -> None:
        """Columns of one length; block i lies in `segments[segment_of[i]]`."""
        self.keys = keys
        self.segments = segments
        self.segment_of = segment_of
        self.offsets = offsets
        self.checksums = checksums

    @classmethod
    def of(cls, blocks: Sequence[IndexedBlock]) -> IndexedBlocks:
        """The same blocks in columns."""
        if isinstance(blocks, IndexedBlocks):
            return blocks
        columns = [SegmentColumn(block.location.segment, block.location.nbytes) for block in blocks]
        numbers = {column: number for number, column in enumerate(dict.fromkeys(columns))}
        return cls(
            tuple(block.key for block in blocks),
            tuple(numbers),
            np.array([numbers[column] for column in columns], np.uint16),
            np.array([block.location.offset for block in blocks], np.uint64),
            np.array([block.location.checksum for block in blocks], np.uint32),
        )

    @property
    def record_bytes(self) -> int:
        """Bytes of the first block's record on the medium; 0 if there is none."""
        return self.segments[self.segment_of[0]].record_bytes if len(self) else 0

    def segment_names(self) -> set[str]:
        """Segments that any of the blocks lies in."""
        if len(self.segments) <= 1:
            return {segment.name for segment in self.segments} if len(self) else set()
        return {self.segments[number].name for number in np.unique(self.segment_of)}

    def joined(self, more: IndexedBlocks) -> IndexedBlocks:
        """These blocks and then `more`."""
        if not len(self) or not len(more):
            return more if not len(self) else self
        segments = tuple(dict.fromkeys((*self.segments, *more.segments)))
        renumbered = np.array([segments.index(segment) for segment in more.segments], np.uint16)
        return IndexedBlocks(
            self.keys + more.keys,
            segments,
            np.concatenate([self.segment_of, renumbered[more.segment_of]]),
            np.concatenate([self.offsets, more.offsets]),
            np.concatenate([self.checksums, more.checksums]),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> IndexedBlock: ...

    @overload
    def __getitem__(self, index: slice) -> IndexedBlocks: ...

    def __getitem__(self, index: int | slice) -> IndexedBlock | IndexedBlocks:
        if isinstance(index, slice):
            return IndexedBlocks(
                self.keys[index],
                self.segments,
                self.segment_of[index],
                self.offsets[index],
                self.checksums[index],
            )
        segment = self.segments[self.segment_of[index]]
        location = BlockLocation(
            segment.name, int(self.offsets[index]), segment.record_bytes, int(self.checksums[index])
        )
        return IndexedBlock(self.keys[index], location)

    def __iter__(self) -> Iterator[IndexedBlock]:
        columns = (self.keys, self.segment_of.tolist(), self.offsets.tolist(), self.checksums.tolist())
        for key, number, offset, checksum in zip(*columns, strict=True):
            segment = self.segments[number]
            yield IndexedBlock(key, BlockLocation(segment.name, offset, segment.record_bytes, checksum))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IndexedBlocks({list(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """As few and as plain objects as can be: one a column."""
        columns = (self.segment_of.tobytes(), self.offsets.tobytes(), self.checksums.tobytes())
        segments = tuple((segment.name, segment.record_bytes) for segment in self.segments)
        return _restore, (b"".join(self.keys), segments, *columns)


NO_BLOCKS = IndexedBlocks((), (), np.zeros(0, np.uint16), np.zeros(0, np.uint64), np.zeros(0, np.uint32))


def _same(one: object, other: object) -> bool:
    return one == other


def _restore(
    keys: bytes, segments: tuple[tuple[str, int], ...], segment_of: bytes, offsets: bytes, checksums: bytes
) -> IndexedBlocks:
    return IndexedBlocks(
        tuple([BlockKey(keys[start : start + KEY_BYTES]) for start in range(0, len(keys), KEY_BYTES)]),
        tuple(SegmentColumn(*segment) for segment in segments),
        np.frombuffer(segment_of, np.uint16),
        np.frombuffer(offsets, np.uint64),
        np.frombuffer(checksums, np.uint32),
    )

"""The segments a writer appends to: one per weights id, each created by itself (O_EXCL), never another's.

A new one begins when the current one is full, and a segment is ended with its footer once nobody appends
to it any more. The directory's owner may be another job's and evict a segment that is still appended to: its
writer sees that before it tells anybody where a block is, and writes the block again in a new segment.
"""

from __future__ import annotations

import errno
import logging
import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from kvstore.block_record import HOLE, Footer, SegmentHeader, record_bytes
from kvstore.direct_io import aligned_buffer, write_fully
from kvstore.errors import StoreError
from kvstore.files import Files
from kvstore.keys import KEY_BYTES, WeightsId
from kvstore.layout import PAGE_BYTES, BlockLayout
from kvstore.segment_files import SEGMENT_SUFFIX, OpenSegment, OpenSegments, is_name_part
from kvstore.store import BlockLocation, BlockWrite, Bytes

logger = logging.getLogger(__name__)

Durability = Literal["none", "data", "full"]

MAX_OPEN_TO_APPEND = 4
_TRIES = 3
"""Segments a batch is written to, one after the other, each evicted meanwhile, before it is given up."""


@dataclass(slots=True)
class _GrowingSegment(OpenSegment):
    """A segment that is appended to, with what its footer will say."""

    end: int = PAGE_BYTES
    """Where the next record goes, in bytes."""
    keys: bytearray = field(default_factory=bytearray)
    parents: bytearray = field(default_factory=bytearray)
    checksums: array[int] = field(default_factory=lambda: array("I"))
    evicted: bool = False

    def reserve(self, num_records: int, stride: int) -> int:
        """Take the next places, holes as yet; the first one's number."""
        first = len(self.checksums)
        self.end += num_records * stride
        self.keys += bytes(num_records * KEY_BYTES)
        self.parents += bytes(num_records * KEY_BYTES)
        self.checksums.extend([HOLE] * num_records)
        return first

    def enter(self, first: int, batch: Sequence[BlockWrite], checksums: Sequence[int]) -> None:
        """The places from `first` on hold the blocks of `batch` now."""
        start, stop = first * KEY_BYTES, (first + len(batch)) * KEY_BYTES
        self.keys[start:stop] = b"".join(write.key for write in batch)
        self.parents[start:stop] = b"".join(write.parent for write in batch)
        self.checksums[first : first + len(batch)] = array("I", checksums)

    def footer(self) -> Footer:
        return Footer(bytes(self.keys), bytes(self.parents), self.checksums)


@dataclass(frozen=True, slots=True)
class AppendRules:
    """How a writer appends."""

    writer_id: str
    direct: bool
    """Past the page cache?"""
    segment_bytes: int
    """Bytes after which a new segment begins; a footer comes on top."""
    durability: Durability
    wall_clock: Callable[[], float]
    """Seconds since the epoch."""


class SegmentWriters(OpenSegments[_GrowingSegment]):
    """The segments this writer appends to, one per weights id."""

    def __init__(self, files: Files, directory: Path, layout: BlockLayout, rules: AppendRules) -> None:
        super().__init__(files, directory, MAX_OPEN_TO_APPEND)
        if not is_name_part(rules.writer_id):
            raise StoreError(f"a writer id is 1..64 of A-Z a-z 0-9 _ -, got {rules.writer_id!r}")
        # Here, not with the first block: is there room in a header to describe the blocks at all?
        SegmentHeader(WeightsId("w" * 64), rules.writer_id, rules.wall_clock(), layout).encode()
        self._layout = layout
        self._rules = rules
        self._stride = record_bytes(layout)
        self._sequence = 0

    def append(
        self, batch: Sequence[BlockWrite], checksums: Sequence[int], parts: Sequence[Bytes]
    ) -> list[BlockLocation]:
        """Write the records of `batch`, of one weights id; return once they are as durable as asked.

        `parts` are their bytes, `checksums` those of their headers. Raises OSError: then none is stored.
        """
        for _ in range(_TRIES):
            segment, first = self._reserve(batch[0].weights_id, len(batch))
            try:
                offset = PAGE_BYTES + first * self._stride
                if self._write(segment, parts, offset):
                    segment.enter(first, batch, checksums)
                    return [
                        BlockLocation(segment.name, offset + i * self._stride, self._stride, checksum)
                        for i, checksum in enumerate(checksums)
                    ]
                self._leave(segment, batch[0].weights_id)
            finally:
                self._release(segment)
        raise OSError(errno.ESTALE, f"{_TRIES} segments in a row were removed while they were written to")

    def _write(self, segment: _GrowingSegment, parts: Sequence[Bytes], offset: int) -> bool:
        """Put the bytes there, as durable as asked; False if the segment was evicted. Raises OSError."""
        try:
            write_fully(self._files, segment.fd, parts, offset)
            if self._rules.durability != "none":
                self._files.fdatasync(segment.fd)
            return not self._files.is_unlinked(segment.fd)
        except OSError as error:
            if error.errno == errno.ESTALE:  # how NFS says that it was unlinked elsewhere
                return False
            raise

    def _leave(self, segment: _GrowingSegment, weights_id: WeightsId) -> None:
        """Append to it no more: it is not there any more. What it held is lost, and a miss."""
        with self._lock:
            first = not segment.evicted
            segment.evicted = True
            if self._open.get(weights_id) is segment:
                self._retire(weights_id)  # closed with its last user, of whom the caller is one
        if first:
            logger.warning(
                "%s was evicted while it was written to; %d blocks in it are misses now",
                segment.name,
                len(segment.checksums) - segment.checksums.count(HOLE),
            )

    def _reserve(self, weights_id: WeightsId, num_records: int) -> tuple[_GrowingSegment, int]:
        """The next places of the current segment of `weights_id`, or of a new one. Raises OSError."""
        with self._lock:
            segment = self._open.get(weights_id)
            nbytes = num_records * self._stride
            if segment is None or segment.end + nbytes > self._rules.segment_bytes:
                segment = self._create(weights_id)
            finished = self._keep(weights_id, segment)
            first = segment.reserve(num_records, self._stride)
            segment.users += 1
        for full in finished:
            self._finish(full)
        return segment, first

    def _create(self, weights_id: WeightsId) -> _GrowingSegment:
        """Raises OSError, and leaves no file then."""
        assert is_name_part(weights_id), weights_id
        header = SegmentHeader(weights_id, self._rules.writer_id, self._rules.wall_clock(), self._layout)
        page = aligned_buffer(PAGE_BYTES)
        page[:] = np.frombuffer(header.encode(), np.uint8)
        name, fd = self._create_file(weights_id)
        try:
            write_fully(self._files, fd, [page], 0)
            if self._rules.durability == "full":
                self._files.sync_directory(self._directory)
        except OSError:
            self._files.close(fd)
            with suppress(OSError):
                self._files.unlink(self._directory / name)
            raise
        return _GrowingSegment(name, fd)

    def _create_file(self, weights_id: WeightsId) -> tuple[str, int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if self._rules.direct else 0)
        while True:
            self._sequence += 1
            name = f"{weights_id}.{self._rules.writer_id}.{self._sequence:06d}{SEGMENT_SUFFIX}"
            try:
                return name, self._files.open(self._directory / name, flags)
            except FileExistsError:
                continue

    def _finish(self, segment: _GrowingSegment) -> None:
        """End the segment with its footer, and close it. Without the footer its records are all there."""
        if segment.evicted:
            self._close_file(segment)
            return
        try:
            footer = np.frombuffer(segment.footer().encode(), np.uint8)
            pages = aligned_buffer(len(footer))
            pages[:] = footer
            write_fully(self._files, segment.fd, [pages], segment.end)
        except OSError as error:
            logger.info("%s has no footer and will be read record by record: %s", segment.name, error)
        finally:
            self._close_file(segment)

    def _close_file(self, segment: _GrowingSegment) -> None:
        try:
            self._files.close(segment.fd)
        except OSError as error:  # NFS tells of failed writes here; the blocks do not verify then
            logger.warning("closing %s: %s", segment.name, error)

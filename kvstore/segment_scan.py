"""What a store directory holds, found without any index: for recovery and for tools.

A sealed segment is read by its footer, three reads whatever it holds. Any other (its writer died, or still
writes, or the footer is damaged) is read record header by record header; one that does not verify is
passed over. Data is not read here: whoever reads a block verifies it. No file can make a scan fail.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvstore.block_record import (
    HOLE,
    Footer,
    SegmentHeader,
    Trailer,
    UnreadableSegment,
    decode_record_header,
    footer_entries_bytes,
    record_bytes,
    record_header_bytes,
)
from kvstore.direct_io import aligned_buffer, read_fully
from kvstore.errors import StoreError
from kvstore.files import Files
from kvstore.keys import KEY_BYTES
from kvstore.layout import PAGE_BYTES, BlockLayout
from kvstore.segment_contents import BadSegment, SegmentContents
from kvstore.segment_files import SEGMENT_SUFFIX, is_segment_name

_TAIL_BYTES = 64 << 10
"""Read at once from a file's end: trailer and, up to some 1,700 records, the whole footer."""


def scan_segments(directory: Path, files: Files) -> Iterator[SegmentContents | BadSegment]:
    """Every segment file of `directory`, in the order of their names; one that vanishes is left out.

    Raises StoreError where the directory cannot be listed.
    """
    try:
        names = sorted(name for name in files.list(directory) if name.endswith(SEGMENT_SUFFIX))
    except OSError as error:
        raise StoreError(f"kvstore.path {directory} cannot be listed: {error.strerror or error}") from error
    for name in names:
        try:
            yield _scan(directory, name, files)
        except FileNotFoundError:
            continue


def scan_segment(directory: Path, name: str, files: Files) -> SegmentContents | BadSegment:
    """What the segment `name` holds. Never raises for what the file is, or is not."""
    try:
        return _scan(directory, name, files)
    except FileNotFoundError:
        return BadSegment(name, 0, "not there")


def _scan(directory: Path, name: str, files: Files) -> SegmentContents | BadSegment:
    """Raises FileNotFoundError."""
    path, nbytes = directory / name, 0
    try:
        nbytes = files.size(path)
        if not is_segment_name(name):
            return BadSegment(name, nbytes, "not named like a segment")
        # O_NONBLOCK: a pipe of that name must not hold up an opening.
        fd = files.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return _Scan(files, fd, name, nbytes).contents()
        finally:
            files.close(fd)
    except UnreadableSegment as error:
        return BadSegment(name, nbytes, str(error))
    except FileNotFoundError:
        raise
    except OSError as error:
        return BadSegment(name, nbytes, f"cannot be read: {error.strerror or error}")


class _Scan:
    """One open segment on its way to a SegmentContents."""

    def __init__(self, files: Files, fd: int, name: str, nbytes: int) -> None:
        self._files = files
        self._fd = fd
        self._name = name
        self._nbytes = nbytes

    def contents(self) -> SegmentContents:
        """Raises UnreadableSegment, or OSError from the medium."""
        header = SegmentHeader.decode(np.frombuffer(self._bytes(0, PAGE_BYTES), np.uint8))
        footer = self._footer(record_bytes(header.layout))
        if footer is None:
            return self._by_record_headers(header)
        return self._by_footer(header, footer)

    def _footer(self, stride: int) -> Footer | None:
        start = max(0, self._nbytes - _TAIL_BYTES) // PAGE_BYTES * PAGE_BYTES
        tail = self._bytes(start, self._nbytes - start)
        if len(tail) < PAGE_BYTES or start + len(tail) != self._nbytes:
            return None
        trailer = Trailer.decode(tail[-PAGE_BYTES:])
        if trailer is None:
            return None
        first = PAGE_BYTES + trailer.num_records * stride
        num_bytes = footer_entries_bytes(trailer.num_records)
        if first + num_bytes + PAGE_BYTES != self._nbytes:
            return None
        if first >= start:
            entries = tail[first - start : first - start + num_bytes]
        else:
            entries = self._bytes(first, num_bytes)
        return Footer.decode(entries, trailer)

    def _by_footer(self, header: SegmentHeader, footer: Footer) -> SegmentContents:
        stride, num_records = record_bytes(header.layout), len(footer.checksums)
        places = np.arange(num_records, dtype=np.uint64) * np.uint64(stride) + np.uint64(PAGE_BYTES)
        keys, parents, checksums = footer.keys, footer.parents, footer.checksums
        if HOLE in checksums:
            held = np.asarray(checksums) != HOLE
            keys, parents = (np.frombuffer(part, f"V{KEY_BYTES}")[held].tobytes() for part in (keys, parents))
            checksums = array("I", np.asarray(checksums)[held].tobytes())
            places = places[held]
        return self._found(header, (keys, parents), array("Q", places.tobytes()), checksums)

    def _by_record_headers(self, header: SegmentHeader) -> SegmentContents:
        layout = header.layout
        keys, parents = bytearray(), bytearray()
        offsets, checksums = array("Q"), array("I")
        page = aligned_buffer(record_header_bytes(layout))
        for offset in _places(layout, self._nbytes):
            if read_fully(self._files, self._fd, [page], offset) < len(page):
                break  # cut off since its size was asked
            record = decode_record_header(layout, page)
            if record is not None:
                keys += record.key
                parents += record.parent
                offsets.append(offset)
                checksums.append(record.checksum)
        return self._found(header, (bytes(keys), bytes(parents)), offsets, checksums, sealed=False)

    def _found(
        self,
        header: SegmentHeader,
        keys_and_parents: tuple[bytes, bytes],
        offsets: array[int],
        checksums: array[int],
        *,
        sealed: bool = True,
    ) -> SegmentContents:
        keys, parents = keys_and_parents
        return SegmentContents(
            name=self._name,
            weights_id=header.weights_id,
            layout=header.layout,
            writer_id=header.writer_id,
            created_s=header.created_s,
            sealed=sealed,
            nbytes=self._nbytes,
            record_bytes=record_bytes(header.layout),
            keys=keys,
            parents=parents,
            offsets=offsets,
            checksums=checksums,
        )

    def _bytes(self, offset: int, nbytes: int) -> bytes:
        """What the file holds there; less at its end."""
        content = bytearray(nbytes)
        num_read = read_fully(self._files, self._fd, [np.frombuffer(content, np.uint8)], offset)
        return bytes(memoryview(content)[:num_read])


def _places(layout: BlockLayout, nbytes: int) -> range:
    """Where records may begin in a file of `nbytes` so that header and Full Block are whole."""
    needed = record_header_bytes(layout) + layout.full_block_bytes
    return range(PAGE_BYTES, nbytes - needed + 1, record_bytes(layout))

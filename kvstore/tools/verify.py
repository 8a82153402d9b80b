"""`verify`: reads every record of a store and names each that is not what was written. Changes nothing.

Headers and data are read past the page cache where the file system allows, in large pieces, by several
threads. A sealed segment is held against its footer; of any other every place is looked at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvstore.direct_io import aligned_buffer, read_fully
from kvstore.files import Files
from kvstore.layout import PAGE_BYTES
from kvstore.segment_contents import BadSegment, SegmentContents
from kvstore.segment_scan import scan_segments
from kvstore.store import Bytes
from kvstore.tools.record_check import Fault, ListedRecord, check_record
from kvstore.tools.verification import BadBlock, Verification

PIECE_BYTES = 8 << 20
"""Read by one call, or one record where that is larger."""
MAX_AHEAD = 4
"""Pieces per thread that wait for it; the rest of the store is not looked at yet."""
NAME = "header and file name disagree"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring records of one segment, or the bytes after the last one."""

    contents: SegmentContents
    offset: int
    listed: tuple[ListedRecord | None, ...]
    """One per record, None where there is no footer to say."""

    @property
    def nbytes(self) -> int:
        return len(self.listed) * self.contents.record_bytes


@dataclass(frozen=True, slots=True)
class _Checked:
    """What became of one piece."""

    num_records: int
    bad_blocks: tuple[BadBlock, ...]


def verify_store(
    directory: Path, files: Files, *, num_threads: int, progress: Callable[[int], None]
) -> Verification:
    """Read it all. `progress` is told the bytes of each piece that was read. Raises StoreError."""
    result = Verification(directory)
    started_s = time.monotonic()
    check = _PieceReader(directory, files).check
    with ThreadPoolExecutor(num_threads, thread_name_prefix="verify") as threads:
        at_work: dict[Future[_Checked], int] = {}

        def collect(most_left: int) -> None:
            while len(at_work) > most_left:
                done, _ = wait(at_work, return_when=FIRST_COMPLETED)
                for future in done:
                    progress(at_work.pop(future))
                    result.num_records += future.result().num_records
                    result.bad_blocks += future.result().bad_blocks

        for found in scan_segments(directory, files):
            result.num_segments += 1
            result.nbytes += found.nbytes
            if isinstance(found, BadSegment):
                result.bad_blocks.append(BadBlock(found.name, False, 0, Fault(found.reason)))
                continue
            if not found.name.startswith(f"{found.weights_id}.{found.writer_id}."):
                result.bad_blocks.append(BadBlock(found.name, found.sealed, 0, Fault(NAME)))
            for piece in _pieces(found):
                at_work[threads.submit(check, piece)] = piece.nbytes
                collect(MAX_AHEAD * num_threads)
        collect(0)
    result.bad_blocks.sort(key=lambda bad: (bad.segment, bad.offset))
    result.took_s = time.monotonic() - started_s
    return result


def _pieces(contents: SegmentContents) -> Iterator[_Piece]:
    """All places of a segment: those its footer lists, or as many as there is room for."""
    stride = contents.record_bytes
    most = max(1, PIECE_BYTES // stride)
    if not contents.sealed:
        num_places = -(-(contents.nbytes - PAGE_BYTES) // stride)
        for start in range(0, num_places, most):
            count = min(most, num_places - start)
            yield _Piece(contents, PAGE_BYTES + start * stride, (None,) * count)
        return
    run: list[ListedRecord] = []
    first = 0
    for i, offset in enumerate(contents.offsets):
        if run and (len(run) == most or offset != first + len(run) * stride):
            yield _Piece(contents, first, tuple(run))
            run = []
        first = first if run else offset
        run.append(ListedRecord(contents.key(i), contents.parent(i), contents.checksums[i]))
    if run:
        yield _Piece(contents, first, tuple(run))


class _PieceReader:
    """Reads pieces and checks what arrived. Thread-safe."""

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory = directory
        self._files = files
        self._thread = threading.local()

    def check(self, piece: _Piece) -> _Checked:
        """Raises nothing: what cannot be read is bad."""
        name = piece.contents.name
        try:
            with self._open(name) as fd:
                return self._check(fd, piece)
        except FileNotFoundError:  # evicted meanwhile
            return _Checked(0, ())
        except OSError as error:
            return _Checked(len(piece.listed), (self._bad(piece, 0, _unreadable(error)),))

    def _check(self, fd: int, piece: _Piece) -> _Checked:
        contents, stride = piece.contents, piece.contents.record_bytes
        memory = self._memory(piece.nbytes)
        try:
            num_read: int | None = read_fully(self._files, fd, [memory], piece.offset)
        except OSError:
            num_read = None  # one bad sector must not hide its neighbours
        num_records, bad = 0, []
        for i, listed in enumerate(piece.listed):
            place = memory[i * stride : (i + 1) * stride]
            try:
                if num_read is None:
                    reached = read_fully(self._files, fd, [place], piece.offset + i * stride)
                else:
                    reached = min(stride, max(0, num_read - i * stride))
            except OSError as error:
                num_records += 1
                bad.append(self._bad(piece, i, _unreadable(error)))
                continue
            record = place[:reached]
            if listed is None and not record.any():
                continue  # nothing was written here
            num_records += 1
            fault = check_record(contents.layout, record, listed)
            if fault is not None:
                bad.append(self._bad(piece, i, fault))
        return _Checked(num_records, tuple(bad))

    def _bad(self, piece: _Piece, index: int, fault: Fault) -> BadBlock:
        contents = piece.contents
        offset = piece.offset + index * contents.record_bytes
        return BadBlock(contents.name, contents.sealed, offset, fault)

    def _memory(self, nbytes: int) -> Bytes:
        """This thread's own, page aligned."""
        memory: Bytes | None = getattr(self._thread, "memory", None)
        if memory is None or len(memory) < nbytes:
            memory = self._thread.memory = aligned_buffer(max(nbytes, PIECE_BYTES))
        return memory[:nbytes]

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        """The segment, with O_DIRECT where a page can be read so: nothing is written to find out."""
        path = self._directory / name
        fd = self._open_direct(path)
        if fd is None:
            fd = self._files.open(path, os.O_RDONLY)
        try:
            yield fd
        finally:
            self._files.close(fd)

    def _open_direct(self, path: Path) -> int | None:
        try:
            fd = self._files.open(path, os.O_RDONLY | os.O_DIRECT)
        except FileNotFoundError:
            raise
        except OSError:
            return None
        try:
            self._files.preadv(fd, [self._memory(PAGE_BYTES).data], 0)
        except OSError:
            self._files.close(fd)
            return None
        return fd


def _unreadable(error: OSError) -> Fault:
    return Fault(f"cannot be read: {error.strerror or error}")

"""BlockStore on a directory of any POSIX file system: local SSD, 3FS, Lustre, CephFS, NFS.

A pool of threads moves records straight between the segments and the caller's slots. It keeps no index
and never overwrites: a location stays good until its segment is removed. Nothing is flushed; this is a
cache, and what a crash tears does not verify.

A medium that cannot take a block (full, read-only, failing) ends the caching, not the job: one
warning, `caching_stopped` says why, later writes return None, reads go on.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kvstore.block_record import (
    encode_record_header,
    record_bytes,
    record_header_bytes,
    verify_record,
)
from kvstore.direct_io import (
    aligned_buffer,
    is_page_aligned,
    probe_direct,
    read_fully,
    write_fully,
)
from kvstore.errors import StoreError
from kvstore.layout import PAGE_BYTES, BlockLayout
from kvstore.segment_files import SegmentReaders, SegmentWriters, UnusableSegment
from kvstore.store import (
    BlockLocation,
    BlockRead,
    BlockReadResult,
    BlockWrite,
    Bytes,
    ReadStatus,
)

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 256 << 20
MAX_APPEND_BLOCKS = 16
MAX_APPEND_BYTES = 16 << 20
CLOSE_DEADLINE_S = 10.0

_A = TypeVar("_A")
_R = TypeVar("_R")


class _Scratch(threading.local):
    """A thread's own aligned memory: record headers, and blocks that cannot land where they go."""

    def __init__(self, layout: BlockLayout) -> None:
        self.headers = aligned_buffer(MAX_APPEND_BLOCKS * record_header_bytes(layout))
        self.block = aligned_buffer(layout.slot_bytes)


class SsdStore:
    """A BlockStore; see kvstore.store for the contract and kvstore.block_record for the bytes."""

    def __init__(
        self,
        directory: Path,
        layout: BlockLayout,
        *,
        writer_id: str,
        io_threads: int,
        segment_bytes: int = SEGMENT_BYTES,
        try_direct: bool = True,
    ) -> None:
        self.layout = layout
        self.caching_stopped: str | None = None
        """Why nothing is written any more; None while all is well."""
        self._stopping = threading.Lock()
        self.direct = self._open_directory(directory) and try_direct
        """Does I/O go past the page cache?"""
        self._readers = SegmentReaders(directory, layout, direct=self.direct)
        self._writers = SegmentWriters(
            directory, layout, writer_id=writer_id, direct=self.direct, limit_bytes=segment_bytes
        )
        self._header_bytes = record_header_bytes(layout)
        self._scratch = _Scratch(layout)
        self._padding = np.zeros(PAGE_BYTES, np.uint8)
        # Turns wait for reads and for no write, so a stuck write must not take the readers' threads.
        self._read_threads = ThreadPoolExecutor(io_threads, thread_name_prefix="kv-read")
        self._write_threads = ThreadPoolExecutor(-(-io_threads // 2), thread_name_prefix="kv-write")
        self._unfinished: set[Future[Any]] = set()
        self._closed = False

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        futures = [self._submit(self._read_threads, self._read_one, read) for read in reads]
        wait(futures, timeout=deadline_s)
        return [_read_result(future) for future in futures]

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        batches = list(self._batches(writes))
        futures = [self._submit(self._write_threads, self._append, batch) for batch in batches]
        wait(futures, timeout=deadline_s)
        locations: list[BlockLocation | None] = []
        for batch, future in zip(batches, futures, strict=True):
            if future.done():
                locations += future.result()
            else:
                future.cancel()
                locations += [None] * len(batch)
        return locations

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        _, stuck = wait(set(self._unfinished), timeout=CLOSE_DEADLINE_S)
        for threads in (self._read_threads, self._write_threads):
            threads.shutdown(wait=not stuck, cancel_futures=True)
        if stuck:
            # Their descriptors stay open: a number that is used again would send bytes elsewhere.
            logger.warning("%d reads or writes never ended; their files stay open", len(stuck))
            return
        self._readers.close()
        self._writers.close()

    def _read_one(self, read: BlockRead) -> BlockReadResult:
        header = self._scratch.headers[: self._header_bytes]
        moves = self._moves_as_it_is(read.into)
        landing = self._slot_of(read.into) if moves else self._scratch.block
        try:
            with self._readers.use(read.location.segment) as fd:
                num_read = read_fully(fd, [header, landing], read.location.offset)
        except UnusableSegment:
            return BlockReadResult(ReadStatus.MISSING)
        except OSError as error:
            logger.warning("reading from %s: %s", read.location.segment, error)
            return BlockReadResult(ReadStatus.FAILED)
        num_bytes = self.layout.full_block_bytes
        if num_read < self._header_bytes + num_bytes:
            return BlockReadResult(ReadStatus.MISSING)
        if not moves:
            read.into[:num_bytes] = landing[:num_bytes]
        checksums = verify_record(self.layout, header, read.into, read.key, read.location.checksum)
        if checksums is None:
            return BlockReadResult(ReadStatus.CORRUPT)
        return BlockReadResult(ReadStatus.OK, checksums)

    def _batches(self, writes: Sequence[BlockWrite]) -> Iterator[list[BlockWrite]]:
        """Runs of blocks that one system call can append, in order."""
        limit = max(1, min(MAX_APPEND_BLOCKS, MAX_APPEND_BYTES // record_bytes(self.layout)))
        batch: list[BlockWrite] = []
        for write in writes:
            joins = batch and batch[-1].weights_id == write.weights_id and len(batch) < limit
            if batch and not (
                joins and self._moves_as_it_is(write.data) and self._moves_as_it_is(batch[-1].data)
            ):
                yield batch
                batch = []
            batch.append(write)
        if batch:
            yield batch

    def _append(self, batch: list[BlockWrite]) -> list[BlockLocation | None]:
        if self.caching_stopped is not None:
            return [None] * len(batch)
        nbytes = record_bytes(self.layout)
        parts, header_checksums = self._records(batch)
        try:
            with self._writers.reserve(batch[0].weights_id, nbytes * len(batch)) as span:
                write_fully(span.fd, parts, span.offset)
        except OSError as error:
            self._stop_caching(error)
            return [None] * len(batch)
        return [
            BlockLocation(span.name, span.offset + i * nbytes, nbytes, header_checksum)
            for i, header_checksum in enumerate(header_checksums)
        ]

    def _records(self, batch: list[BlockWrite]) -> tuple[list[Bytes], list[int]]:
        """The batch's records as pieces of memory, and their headers' checksums."""
        parts: list[Bytes] = []
        header_checksums = []
        for i, write in enumerate(batch):
            start = i * self._header_bytes
            header = self._scratch.headers[start : start + self._header_bytes]
            header_checksums.append(
                encode_record_header(self.layout, write.key, write.layer_checksums, header)
            )
            data = self._slot_of(write.data)
            if not self._moves_as_it_is(write.data):
                self._scratch.block[: len(data)] = data
                data = self._scratch.block
            parts += [header, data, self._padding[: self.layout.slot_bytes - len(data)]]
        return parts, header_checksums

    def _moves_as_it_is(self, view: Bytes) -> bool:
        """May the medium read or write this memory itself? Else it goes through an aligned copy."""
        return not self.direct or (len(view) >= self.layout.slot_bytes and is_page_aligned(view))

    def _slot_of(self, view: Bytes) -> Bytes:
        """The slot in `view`, with its padding if there is any."""
        assert len(view) >= self.layout.full_block_bytes, (len(view), self.layout)
        whole = len(view) >= self.layout.slot_bytes
        return view[: self.layout.slot_bytes if whole else self.layout.full_block_bytes]

    def _open_directory(self, directory: Path) -> bool:
        """Make the directory and see that it takes files; True if O_DIRECT works there."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            direct = probe_direct(directory)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._stop_caching(error)
                return False
            raise StoreError(
                f"kvstore.path {directory} cannot be written: {error.strerror or error}"
            ) from error
        if not direct:
            logger.warning("O_DIRECT does not work on %s: I/O uses the page cache", directory)
        return direct

    def _stop_caching(self, error: OSError) -> None:
        with self._stopping:
            if self.caching_stopped is None:
                self.caching_stopped = str(error)
                logger.warning("KV caching stopped, the store takes no more blocks: %s", error)

    def _submit(self, threads: ThreadPoolExecutor, work: Callable[[_A], _R], argument: _A) -> Future[_R]:
        if self._closed:
            raise StoreError("the SSD store is closed")
        future = threads.submit(work, argument)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future


def _read_result(future: Future[BlockReadResult]) -> BlockReadResult:
    """The future's result, or TIMED_OUT with a way to learn when its slot is safe."""
    if future.done():
        return future.result()
    settled = threading.Event()
    if future.cancel():
        settled.set()
    else:
        future.add_done_callback(lambda _: settled.set())
    return BlockReadResult(ReadStatus.TIMED_OUT, settled=settled)

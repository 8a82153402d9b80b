"""BlockStore on a directory of any POSIX file system: local SSD, 3FS, MooseFS, Lustre, CephFS, NFS.

Threads of its own move records straight between the segments and the caller's slots; blocks that lie side
by side move together. It keeps no index and never overwrites: a location stays good until its segment is
removed. What a crash tears does not verify, and `durability` says what a block has survived before its
location is returned.

A medium that cannot take a block (full, read-only, failing) ends the caching, not the job: see
kvstore.write_gate. Reads go on.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from kvstore.block_record import (
    encode_record_header,
    record_bytes,
    record_header_bytes,
    verify_record,
)
from kvstore.direct_io import aligned_buffer, is_page_aligned, probe_direct, read_fully
from kvstore.errors import StoreError
from kvstore.files import Files, PosixFiles
from kvstore.header_memory import HeaderMemory
from kvstore.io_runs import MAX_RUN_BLOCKS, read_runs, write_runs
from kvstore.io_threads import MAX_WRITE_WAIT_S, IoThreads, Job
from kvstore.layout import PAGE_BYTES, BlockLayout
from kvstore.segment_readers import SegmentReaders, UnusableSegment
from kvstore.segment_writers import AppendRules, Durability, SegmentWriters
from kvstore.shared_mount import is_shared_mount
from kvstore.store import (
    BlockLocation,
    BlockRead,
    BlockReadResult,
    BlockWrite,
    Bytes,
    ReadStatus,
)
from kvstore.write_gate import RETRY_S, WriteGate

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 256 << 20
CLOSE_DEADLINE_S = 10.0

_LATE_LENGTH_PAUSES_S = (0.005, 0.02, 0.1, 0.4)
"""MooseFS tells its other clients of a file's new length up to some milliseconds after fdatasync."""

_READABLE_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""A directory that answers with these can still be read."""


class SsdOptions(TypedDict, total=False):
    """What an SsdStore may be told beyond what it needs; _DEFAULTS has the values otherwise."""

    durability: Durability
    """What a block has survived when its location is returned: none, a crash of the process; data, a power
    cut that spares the names of files; full, a power cut."""
    segment_bytes: int
    """Bytes after which a writer begins a new segment."""
    try_direct: bool
    """Go past the page cache where that works?"""
    files: Files
    max_write_wait_s: float
    """Seconds that reads may hold up a write."""
    retry_s: float
    """Seconds between two tries to write to a full disk."""
    clock: Callable[[], float]
    """Seconds, never going back."""
    wall_clock: Callable[[], float]
    """Seconds since the epoch, for the headers of segments."""


_DEFAULTS = SsdOptions(
    durability="none",
    segment_bytes=SEGMENT_BYTES,
    try_direct=True,
    files=PosixFiles(),
    max_write_wait_s=MAX_WRITE_WAIT_S,
    retry_s=RETRY_S,
    clock=time.monotonic,
    wall_clock=time.time,
)


class _Scratch(threading.local):
    """A thread's own aligned memory: headers to write, and blocks that cannot land where they go."""

    def __init__(self, layout: BlockLayout) -> None:
        self.headers = aligned_buffer(MAX_RUN_BLOCKS * record_header_bytes(layout))
        self.block = aligned_buffer(layout.slot_bytes)


@dataclass(frozen=True, slots=True)
class _ReadRun:
    """Blocks that lie side by side in one segment, on their way."""

    indices: list[int]
    """Their places in the call."""
    reads: list[BlockRead]
    headers: list[Bytes]
    """Where their record headers land."""


class SsdStore:
    """A BlockStore; see kvstore.store for the contract and kvstore.block_record for the bytes."""

    def __init__(
        self,
        directory: Path,
        layout: BlockLayout,
        *,
        writer_id: str,
        io_threads: int,
        **options: Unpack[SsdOptions],
    ) -> None:
        """`io_threads` read, and half as many more write.

        Raises StoreError where no store can be, LayoutError for blocks that a segment cannot describe.
        """
        told: SsdOptions = {**_DEFAULTS, **options}
        self.layout = layout
        self._files = told["files"]
        self._gate = WriteGate(told["clock"], told["retry_s"])
        self._figures: Counter[str] = Counter()
        self._figures_lock = threading.Lock()
        self.direct = self._open_directory(directory, told["durability"]) and told["try_direct"]
        """Does I/O go past the page cache?"""
        self.shared = is_shared_mount(directory)
        """Do other hosts mount the directory too, as far as one can tell?"""
        if self.shared and told["durability"] == "none":
            logger.warning(
                "%s is on a shared file system: with kvstore.durability=none other hosts may not find "
                "blocks for a while after they are announced; use data",
                directory,
            )
        self._readers = SegmentReaders(self._files, directory, layout, told["clock"], direct=self.direct)
        rules = AppendRules(
            writer_id=writer_id,
            direct=self.direct,
            segment_bytes=told["segment_bytes"],
            durability=told["durability"],
            wall_clock=told["wall_clock"],
        )
        self._writers = SegmentWriters(self._files, directory, layout, rules)
        self._segment_bytes = told["segment_bytes"]
        self._header_bytes = record_header_bytes(layout)
        self._record_bytes = record_bytes(layout)
        self._scratch = _Scratch(layout)
        self._header_memory = HeaderMemory(self._header_bytes)
        self._padding = np.zeros(PAGE_BYTES, np.uint8)
        self._num_readers, self._num_writers = io_threads, -(-io_threads // 2)
        self._threads = IoThreads(
            self._num_readers, self._num_writers, max_write_wait_s=told["max_write_wait_s"]
        )
        self._closed = False

    @property
    def caching_stopped(self) -> str | None:
        """Why nothing is written; None while all is well."""
        return self._gate.stopped

    def figures(self) -> dict[str, int]:
        """Counted since it was opened: blocks read by status, blocks written and refused, bytes of blocks
        read (verified) and of records written; and `direct`, 1 if I/O goes past the page cache."""
        names = (
            *(f"reads_{status.value}" for status in ReadStatus),
            *("writes_ok", "writes_refused", "bytes_read", "bytes_written"),
        )
        with self._figures_lock:
            return {name: self._figures[name] for name in names} | {"direct": int(self.direct)}

    # Reading

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        results = [BlockReadResult(ReadStatus.FAILED)] * len(reads)
        headers = self._header_memory.take(len(reads))

        def verify(job: Job[_ReadRun, list[ReadStatus]]) -> None:
            """In the caller's thread, which has nothing else to do: the others stay in I/O."""
            run = job.argument
            for index, read, header, status in zip(
                run.indices, run.reads, run.headers, job.result or (), strict=False
            ):
                results[index] = self._verified(read, header, status)

        runs = [
            _ReadRun(indices, [reads[i] for i in indices], [headers[i] for i in indices])
            for indices in read_runs(reads, self._record_bytes, self._num_readers, self._is_slot)
        ]
        late = [
            job
            for job in self._threads.run_reads(self._read_run, runs, deadline_s, verify)
            if job.settled is not None
        ]
        for job in late:
            for index in job.argument.indices:
                results[index] = BlockReadResult(ReadStatus.TIMED_OUT, settled=job.settled)
        if not late:
            self._header_memory.give_back(headers)
        self._count_reads(results)
        return results

    def _read_run(self, run: _ReadRun) -> list[ReadStatus]:
        """Bring the run's blocks into memory; OK of one that is there, and yet to be verified."""
        first = run.reads[0].location
        if not self._could_be_ours(first):
            return [ReadStatus.MISSING] * len(run.reads)
        parts = self._landing(run)
        try:
            with self._readers.use(first.segment) as fd:
                num_read = self._read_parts(fd, parts, first.offset)
        except UnusableSegment:
            return [ReadStatus.MISSING] * len(run.reads)
        except OSError as error:
            if len(run.reads) > 1:  # which one is it?
                alone = (
                    _ReadRun([i], [read], [header])
                    for i, read, header in zip(run.indices, run.reads, run.headers, strict=True)
                )
                return [status for one in alone for status in self._read_run(one)]
            logger.warning("reading from %s: %s", first.segment, error)
            return [ReadStatus.FAILED]
        self._copy_what_landed_elsewhere(run, parts)
        whole = self._header_bytes + self.layout.full_block_bytes
        arrived = ((num_read >= i * self._record_bytes + whole) for i in range(len(run.reads)))
        return [ReadStatus.OK if there else ReadStatus.MISSING for there in arrived]

    def _read_parts(self, fd: int, parts: Sequence[Bytes], offset: int) -> int:
        """The bytes read. Where other hosts write too, a file may seem shorter than it is for a moment."""
        num_bytes = sum(map(len, parts))
        num_read = read_fully(self._files, fd, parts, offset)
        for pause_s in _LATE_LENGTH_PAUSES_S if self.shared else ():
            if num_read == num_bytes:
                break
            time.sleep(pause_s)
            num_read = read_fully(self._files, fd, parts, offset)
        return num_read

    def _could_be_ours(self, location: BlockLocation) -> bool:
        places, rest = divmod(location.offset - PAGE_BYTES, self._record_bytes)
        return location.nbytes == self._record_bytes and 0 <= places < 1 << 40 and rest == 0

    def _landing(self, run: _ReadRun) -> list[Bytes]:
        """Where the run's bytes go: a header, a block, a header, a block ..."""
        parts: list[Bytes] = []
        for read, header in zip(run.reads, run.headers, strict=True):
            moves = self._moves_as_it_is(read.into)
            parts += [header, self._slot_of(read.into) if moves else self._scratch.block]
        return parts

    def _copy_what_landed_elsewhere(self, run: _ReadRun, parts: list[Bytes]) -> None:
        num_bytes = self.layout.full_block_bytes
        for read, landed in zip(run.reads, parts[1::2], strict=True):
            if landed is self._scratch.block:
                read.into[:num_bytes] = landed[:num_bytes]

    def _verified(self, read: BlockRead, header: Bytes, status: ReadStatus) -> BlockReadResult:
        """Check a block that arrived where its reader will use it."""
        if status is not ReadStatus.OK:
            return BlockReadResult(status)
        checksums = verify_record(self.layout, header, read.into, read.key, read.location.checksum)
        return BlockReadResult(ReadStatus.CORRUPT if checksums is None else status, checksums or b"")

    # Writing

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        runs = write_runs(
            writes, self._record_bytes, self._segment_bytes, self._num_writers, self._moves_as_it_is
        )
        jobs = self._threads.run_writes(self._append, runs, deadline_s)
        locations: list[BlockLocation | None] = []
        for run, job in zip(runs, jobs, strict=True):
            stored = job.result if job.settled is None else None
            locations += stored or [None] * len(run)
        self._count_writes(locations)
        return locations

    def _append(self, run: Sequence[BlockWrite]) -> list[BlockLocation] | None:
        """Append blocks of one weights id; None if they are not stored."""
        if not self._gate.admits():
            return None
        parts, header_checksums = self._records(run)
        try:
            locations = self._writers.append(run, header_checksums, parts)
        except OSError as error:
            self._gate.failed(error)
            return None
        self._gate.succeeded()
        return locations

    def _records(self, run: Sequence[BlockWrite]) -> tuple[list[Bytes], list[int]]:
        """The run's records as pieces of memory, and their headers' checksums."""
        parts: list[Bytes] = []
        header_checksums = []
        for i, write in enumerate(run):
            header = self._header(i)
            header_checksums.append(encode_record_header(self.layout, write, header))
            data = self._slot_of(write.data)
            if not self._moves_as_it_is(write.data):
                self._scratch.block[: len(data)] = data
                data = self._scratch.block
            parts += [header, data]
            if len(data) < self.layout.slot_bytes:
                parts.append(self._padding[: self.layout.slot_bytes - len(data)])
        return parts, header_checksums

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        stuck = self._threads.close(CLOSE_DEADLINE_S)
        if stuck:
            # Their descriptors stay open: a number that is used again would send bytes elsewhere.
            logger.warning("%d reads or writes never ended; their files stay open", stuck)
            return
        self._readers.close()
        self._writers.close()

    # Memory

    def _header(self, i: int) -> Bytes:
        """Where this thread puts the header of the block `i` of a run."""
        start = i * self._header_bytes
        return self._scratch.headers[start : start + self._header_bytes]

    def _moves_as_it_is(self, view: Bytes) -> bool:
        """May the medium read or write this memory itself? Else it goes through an aligned copy."""
        return not self.direct or (len(view) >= self.layout.slot_bytes and is_page_aligned(view))

    def _is_slot(self, view: Bytes) -> bool:
        """May a whole slot land in this memory, padding and all?"""
        return len(view) >= self.layout.slot_bytes and self._moves_as_it_is(view)

    def _slot_of(self, view: Bytes) -> Bytes:
        """The slot in `view`, with its padding if there is any."""
        assert len(view) >= self.layout.full_block_bytes, (len(view), self.layout)
        whole = len(view) >= self.layout.slot_bytes
        return view[: self.layout.slot_bytes if whole else self.layout.full_block_bytes]

    # The medium, and what became of calls

    def _open_directory(self, directory: Path, durability: Durability) -> bool:
        """Make the directory and see that it takes files; True if O_DIRECT works there."""
        try:
            self._make_directory(directory, durability)
            direct = probe_direct(self._files, directory)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or (error.errno in _READABLE_ONLY and directory.is_dir()):
                self._gate.failed(error)
                return False
            raise StoreError(
                f"kvstore.path {directory} cannot be written: {error.strerror or error}"
            ) from error
        if not direct:
            logger.warning("O_DIRECT does not work on %s: I/O uses the page cache", directory)
        return direct

    def _make_directory(self, directory: Path, durability: Durability) -> None:
        made = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        if durability == "full":
            for path in made:
                self._files.sync_directory(path.parent)

    def _count_reads(self, results: Sequence[BlockReadResult]) -> None:
        statuses = Counter(result.status for result in results)
        with self._figures_lock:
            for status, number in statuses.items():
                self._figures[f"reads_{status.value}"] += number
            self._figures["bytes_read"] += statuses[ReadStatus.OK] * self.layout.full_block_bytes

    def _count_writes(self, locations: Sequence[BlockLocation | None]) -> None:
        refused = locations.count(None)
        with self._figures_lock:
            self._figures["writes_refused"] += refused
            self._figures["writes_ok"] += len(locations) - refused
            self._figures["bytes_written"] += (len(locations) - refused) * self._record_bytes

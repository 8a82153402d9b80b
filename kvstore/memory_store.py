"""BlockStore in the memory of one process: the plain variant, where all nodes live in that process.

Same behaviour as the SSD store, verification included; what does not fit is not stored. Its memory is taken
whole at opening: a new page's first touch is ten times a copy.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.block_record import encode_record_header, record_header_bytes, verify_record
from kvstore.errors import StoreError
from kvstore.layout import BlockLayout
from kvstore.store import (
    BlockLocation,
    BlockRead,
    BlockReadResult,
    BlockWrite,
    Bytes,
    ReadStatus,
)


@dataclass(frozen=True, slots=True)
class _Record:
    header: Bytes
    data: Bytes


class MemoryStore:
    """A BlockStore; see kvstore.store for the contract. It never evicts."""

    def __init__(self, layout: BlockLayout, capacity_bytes: int) -> None:
        """`capacity_bytes` >= 1, of headers and blocks together."""
        self.layout = layout
        self.capacity_bytes = capacity_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self._memory: Bytes = np.frombuffer(mmap.mmap(-1, capacity_bytes, flags=flags), np.uint8)
        self._record_bytes = record_header_bytes(layout) + layout.full_block_bytes
        self._records: dict[tuple[str, int], _Record] = {}
        self._num_reserved = 0
        self._lock = threading.Lock()
        self._closed = False

    @property
    def stored_bytes(self) -> int:
        return self._num_reserved * self._record_bytes

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        self._check_open()
        end_s = time.monotonic() + deadline_s
        return [self._read_one(read, end_s) for read in reads]

    def _read_one(self, read: BlockRead, end_s: float) -> BlockReadResult:
        if time.monotonic() >= end_s:
            settled = threading.Event()
            settled.set()
            return BlockReadResult(ReadStatus.TIMED_OUT, settled=settled)
        record = self._records.get((read.location.segment, read.location.offset))
        if record is None:
            return BlockReadResult(ReadStatus.MISSING)
        into = read.into[: self.layout.full_block_bytes]
        into[:] = record.data
        checksums = verify_record(self.layout, record.header, into, read.key, read.location.checksum)
        if checksums is None:
            return BlockReadResult(ReadStatus.CORRUPT)
        return BlockReadResult(ReadStatus.OK, checksums)

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        self._check_open()
        end_s = time.monotonic() + deadline_s
        return [self._write_one(write, end_s) for write in writes]

    def _write_one(self, write: BlockWrite, end_s: float) -> BlockLocation | None:
        if time.monotonic() >= end_s:
            return None
        with self._lock:
            if self.stored_bytes + self._record_bytes > self.capacity_bytes:
                return None
            offset = self._num_reserved * self._record_bytes
            self._num_reserved += 1
        record = self._memory[offset : offset + self._record_bytes]
        header, data = np.split(record, [record_header_bytes(self.layout)])
        crc = encode_record_header(self.layout, write, header)
        data[:] = write.data[: self.layout.full_block_bytes]
        location = BlockLocation(f"memory.{write.weights_id}", offset, self._record_bytes, crc)
        self._records[location.segment, location.offset] = _Record(header, data)
        return location

    def close(self) -> None:
        self._closed = True
        self._records.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the memory store is closed")

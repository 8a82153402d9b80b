"""A store of each kind, and ways to damage what it holds."""

from __future__ import annotations

import os
from pathlib import Path

from kvstore.block_record import record_header_bytes
from kvstore.files import Files, PosixFiles
from kvstore.layout import BlockLayout
from kvstore.memory_store import MemoryStore
from kvstore.ssd_store import SsdOptions, SsdStore
from kvstore.store import BlockLocation, BlockStore

SSD_KINDS: dict[str, SsdOptions] = {
    "ssd": {},
    "ssd through the page cache": {"try_direct": False},
    "ssd, data durable": {"durability": "data"},
    "ssd, data and names durable": {"durability": "full"},
}
KINDS = ("memory", *SSD_KINDS, "moosefs", "3fs", "mooncake")
"""Of the last three, make_under_test in conftest.py brings what they need."""


class StoreUnderTest:
    """Opens handles on one store; every handle is closed by close()."""

    def __init__(self, kind: str, layout: BlockLayout, directory: Path, files: Files | None = None) -> None:
        self.kind = kind
        self.layout = layout
        self.directory = directory
        self._files = files or PosixFiles()
        self._memory = MemoryStore(layout, capacity_bytes=64 << 20)
        self._handles: list[BlockStore] = [self._memory]

    def open(self, writer_id: str = "writer") -> BlockStore:
        """Another handle, as another process would have it; a memory store has only the one."""
        if self.kind == "memory":
            return self._memory
        store = SsdStore(
            self.directory,
            self.layout,
            writer_id=writer_id,
            io_threads=3,
            segment_bytes=200_000,
            files=self._files,
            **SSD_KINDS[self.kind],
        )
        self._handles.append(store)
        return store

    def close(self) -> None:
        for store in self._handles:
            store.close()

    def flip_bit(self, location: BlockLocation, byte: int) -> None:
        """Damage one byte of the Full Block."""
        self._flip(location, in_header=False, byte=byte)

    def flip_header_bit(self, location: BlockLocation, byte: int) -> None:
        self._flip(location, in_header=True, byte=byte)

    def lose(self, location: BlockLocation) -> None:
        """Take the block away, as an eviction would."""
        if self.kind == "memory":
            del self._memory._records[location.segment, location.offset]
        else:
            (self.directory / location.segment).unlink()

    def _flip(self, location: BlockLocation, *, in_header: bool, byte: int) -> None:
        if self.kind == "memory":
            record = self._memory._records[location.segment, location.offset]
            (record.header if in_header else record.data)[byte] ^= 4
            return
        skipped = 0 if in_header else record_header_bytes(self.layout)
        fd = os.open(self.directory / location.segment, os.O_RDWR)
        where = location.offset + skipped + byte
        os.pwrite(fd, bytes([os.pread(fd, 1, where)[0] ^ 4]), where)
        os.close(fd)

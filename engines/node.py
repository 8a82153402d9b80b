"""A node's agent: it owns the node's staging memory, its store handle and its storage NIC.

Engines of the node map the staging memory; nobody else reads or writes the store. The agent does not decide
which slots are free (the scheduler does) nor which blocks are worth reading.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from engines.types import BlockLoad, BlockPersist, NodeBytes, NodeId, ReadSide
from kvstore.config import StoreConfig
from kvstore.keys import WeightsId
from kvstore.layout import BlockLayout
from kvstore.open_store import open_store
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.store import (
    BlockLocation,
    BlockRead,
    BlockReadResult,
    BlockStore,
    BlockWrite,
    ReadStatus,
)

_PARALLEL_BATCHES = 4
A = TypeVar("A")
R = TypeVar("R")


class NodeAgent:
    """One node's storage side. Its methods run on one event loop; I/O runs in threads."""

    def __init__(
        self, node_id: NodeId, store: BlockStore, staging: StagingMemory, io_deadline_s: float = math.inf
    ) -> None:
        """`io_deadline_s` bounds every batch of reads or writes, whatever its caller would wait."""
        self._node_id = node_id
        self._io_deadline_s = io_deadline_s
        self._store = store
        self._staging = staging
        self._threads = ThreadPoolExecutor(_PARALLEL_BATCHES, thread_name_prefix=f"{node_id}-io")
        self._read_bytes: Counter[ReadSide] = Counter()
        self._written_bytes = 0
        self._bad_reads: Counter[str] = Counter()

    async def handle(self) -> StagingHandle:
        return self._staging.handle

    async def load(
        self, loads: Sequence[BlockLoad], side: ReadSide, deadline_s: float
    ) -> tuple[BlockReadResult, ...]:
        """Read blocks into their slots; each result says whether its slot may be used."""
        reads = [BlockRead(load.key, load.location, self._staging.slot(load.slot)) for load in loads]
        results = await self._in_thread(self._store.read, reads, deadline_s)
        for result in results:
            if result.status is ReadStatus.OK:
                self._read_bytes[side] += self._layout.full_block_bytes
            else:
                self._bad_reads[result.status.value] += 1
        # What tells a late read's end stays here: it does not travel between processes.
        return tuple(replace(result, settled=None) for result in results)

    async def persist(
        self, blocks: Sequence[BlockPersist], weights_id: WeightsId, deadline_s: float
    ) -> tuple[BlockLocation | None, ...]:
        """Write blocks from their slots; None for each that was not stored."""
        size = self._layout.full_block_bytes
        writes = [
            BlockWrite(block.key, weights_id, self._staging.slot(block.slot)[:size], block.layer_checksums)
            for block in blocks
        ]
        locations = await self._in_thread(self._store.write, writes, deadline_s)
        self._written_bytes += size * sum(location is not None for location in locations)
        return tuple(locations)

    async def moved(self) -> NodeBytes:
        return NodeBytes(
            read_prefill_side=self._read_bytes[ReadSide.PREFILL],
            read_decode_side=self._read_bytes[ReadSide.DECODE],
            written=self._written_bytes,
        )

    async def bad_reads(self) -> dict[str, int]:
        """Blocks that could not be read, by reason."""
        return dict(self._bad_reads)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()
        self._staging.close()

    @property
    def _layout(self) -> BlockLayout:
        return self._staging.layout

    async def _in_thread(
        self, function: Callable[[list[A], float], list[R]], batch: list[A], deadline_s: float
    ) -> list[R]:
        loop = asyncio.get_running_loop()
        bounded_s = min(deadline_s, self._io_deadline_s)
        return await loop.run_in_executor(self._threads, function, batch, bounded_s)


class NodeProcess(NodeAgent):
    """A node agent with its staging memory and its store."""

    def __init__(
        self, node_id: NodeId, config: StoreConfig, layout: BlockLayout, directory: str, writer_id: str
    ) -> None:
        staging = StagingMemory.create(node_id, layout, config.staging_bytes // layout.slot_bytes)
        store = open_store(config, layout, directory=Path(directory), writer_id=writer_id)
        super().__init__(node_id, store, staging, config.deadline_s)

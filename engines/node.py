"""A node's agent: it owns the node's staging memory, its store handle and its storage NIC.

Engines of the node map the staging memory; nobody else reads or writes the store. The agent does not decide
which slots are free (the scheduler does) nor which blocks are worth reading or keeping. It remembers what it
read into which slot, so that a block found there later can be verified like one from the store.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from engines.cluster_config import ClusterConfig
from engines.peers import SchedulerPeer
from engines.types import BlockLoad, BlockPersist, NodeBytes, NodeId, ReadSide, SlotId
from kvstore.checksum import layer_checksums
from kvstore.config import StoreConfig
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout
from kvstore.limiter import LimiterHandle, NodeLimiter
from kvstore.null_store import NullStore
from kvstore.open_store import open_store
from kvstore.open_transport import TransportSpec, open_region_server
from kvstore.region_server import RegionServer, SharedMemoryServer
from kvstore.ssd_store import SsdStore
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.storage_traffic import StorageTraffic
from kvstore.store import (
    BlockLocation,
    BlockRead,
    BlockReadResult,
    BlockStore,
    BlockWrite,
    ReadStatus,
)
from kvstore.traffic import TrafficClass
from kvstore.traffic_ledger import STORAGE_HOPS, TrafficLedger
from kvstore.transport import RegionHandle

BAD_STATUSES = tuple(status for status in ReadStatus if status is not ReadStatus.OK)
_PARALLEL_BATCHES = 4
_SETTLE_DEADLINE_S = 600.0
"""A late read that has not ended by then keeps its slot for as long as the node lives."""
_SETTLE_LOOK_S = 0.5
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What was read into a slot."""

    key: BlockKey
    layer_checksums: bytes


@dataclass(frozen=True, slots=True)
class NodeNics:
    """The NICs that a node is to stand for."""

    rates: ClusterConfig
    num_cnics: int
    """One for each engine of the node."""

    def open(self, node_id: NodeId) -> NodeLimiter | None:
        """None where the cluster limits no NIC."""
        if self.rates.snic_bytes_per_s is None and self.rates.cnic_bytes_per_s is None:
            return None
        return NodeLimiter.create(
            node_id,
            snic_bytes_per_s=self.rates.snic_bytes_per_s,
            cnic_bytes_per_s=self.rates.cnic_bytes_per_s,
            num_cnics=self.num_cnics,
            traffic_classes=self.rates.traffic_classes,
        )


class NodeAgent:
    """One node's storage side. Its methods run on one event loop; I/O runs in threads."""

    def __init__(
        self,
        node_id: NodeId,
        store: BlockStore,
        staging: StagingMemory,
        io_deadline_s: float = math.inf,
        server: RegionServer | None = None,
        limiter: NodeLimiter | None = None,
    ) -> None:
        """`io_deadline_s` bounds every batch of reads or writes, whatever its caller would wait.

        `server` lets other nodes' engines reach the staging memory; None: they map it. `limiter`: the node's
        NICs where their rates are limited; the agent owns it.
        """
        self._node_id = node_id
        self._io_deadline_s = io_deadline_s
        self._limiter = limiter
        self._store = StorageTraffic(
            store, staging.layout, TrafficLedger(), None if limiter is None else limiter.snic
        )
        self._staging = staging
        self._server = server or SharedMemoryServer()
        self._region = self._server.register(staging)
        self._threads = ThreadPoolExecutor(_PARALLEL_BATCHES, thread_name_prefix=f"{node_id}-io")
        self._closed = threading.Event()
        self._scheduler: SchedulerPeer
        self._loaded: dict[SlotId, _Loaded] = {}
        self._read_bytes: Counter[ReadSide] = Counter()
        self._written_bytes = 0
        self._bad_reads: Counter[str] = Counter()
        self._telling: set[asyncio.Future[None]] = set()

    async def connect(self, scheduler: SchedulerPeer) -> None:
        """Join the cluster: `scheduler` hears of slots whose late reads have ended."""
        self._scheduler = scheduler

    async def handle(self) -> StagingHandle:
        return self._staging.handle

    async def region(self) -> RegionHandle:
        """By which other nodes' engines reach the staging memory."""
        return self._region

    async def load(
        self, loads: Sequence[BlockLoad], side: ReadSide, deadline_s: float
    ) -> tuple[BlockReadResult, ...]:
        """Bring blocks into their slots; each result says whether its slot may be used.

        A block with a location is read from the store; one without must be in its slot since an earlier
        load, and is verified there: MISSING if the slot has held another block since.
        """
        here = [index for index, load in enumerate(loads) if load.location is None]
        results: list[BlockReadResult] = [BlockReadResult(ReadStatus.MISSING)] * len(loads)
        found, read = await asyncio.gather(
            self._verify([loads[index] for index in here], deadline_s),
            self._read([load for load in loads if load.location is not None], side, deadline_s),
        )
        for index, result in zip(here, found, strict=True):
            results[index] = result
        rest = iter(read)
        for index, load in enumerate(loads):
            if load.location is not None:
                results[index] = next(rest)
        self._bad_reads.update(r.status.value for r in results if r.status is not ReadStatus.OK)
        return tuple(results)

    async def persist(
        self, blocks: Sequence[BlockPersist], weights_id: WeightsId, deadline_s: float
    ) -> tuple[BlockLocation | None, ...]:
        """Write blocks from their slots; None for each that was not stored."""
        writes = [
            BlockWrite(
                key=block.key,
                parent=block.parent,
                weights_id=weights_id,
                data=self._staging.slot(block.slot),  # with its padding, so that it needs no copy
                layer_checksums=block.layer_checksums,
            )
            for block in blocks
        ]
        locations = await self._in_thread(self._store.write, writes, deadline_s)
        num_stored = sum(location is not None for location in locations)
        self._written_bytes += num_stored * self._layout.full_block_bytes
        return tuple(locations)

    async def moved(self) -> NodeBytes:
        return NodeBytes(
            read_prefill_side=self._read_bytes[ReadSide.PREFILL],
            read_decode_side=self._read_bytes[ReadSide.DECODE],
            read_dram=self._read_bytes[ReadSide.DRAM],
            written=self._written_bytes,
        )

    async def bad_reads(self) -> dict[str, int]:
        """Blocks that could not be read, by reason."""
        return dict(self._bad_reads)

    async def figures(self) -> dict[str, float]:
        """What the storage side has met since the start, for metrics; they add up over nodes."""
        return {f"bad_blocks/{status.value}": self._bad_reads[status.value] for status in BAD_STATUSES}

    async def storage_traffic(self) -> dict[str, int]:
        """Bytes that passed the storage NIC since the start, by hop."""
        return self._store.ledger.by_hop(STORAGE_HOPS)

    # -- NICs of limited rate ------------------------------------------------------------------------

    async def limiter(self) -> LimiterHandle | None:
        """By which engines share the node's NICs; None: nothing limits them."""
        return None if self._limiter is None else self._limiter.handle

    async def set_snic_rate(self, bytes_per_s: float | None) -> None:
        """Of the storage NIC, each way, from the next piece on. Raises ValueError where it cannot be."""
        if self._limiter is None:
            raise ValueError(
                f"{self._node_id} keeps no rates: start it with cluster.snic_bytes_per_s or cnic_bytes_per_s"
            )
        self._limiter.snic.set_rate(bytes_per_s)

    async def nic_bytes(self) -> dict[str, int]:
        """What has passed each of the node's NICs by now, by "snic/in/kv" and the like; empty without limits.

        Exact at any instant: the difference of two looks is what passed in between.
        """
        if self._limiter is None:
            return {}
        nics = {"snic": self._limiter.snic}
        nics |= {f"cnic-{rail}": nic for rail, nic in enumerate(self._limiter.cnics)}
        return {
            f"{name}/{way}/{traffic_class.value}": lane.use(traffic_class).nbytes
            for name, nic in nics.items()
            for way, lane in (("in", nic.inbound), ("out", nic.outbound))
            for traffic_class in TrafficClass
        }

    async def close(self) -> None:
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()
        await asyncio.to_thread(self._server.close)
        self._staging.close()
        if self._limiter is not None:
            self._limiter.close()

    @property
    def _layout(self) -> BlockLayout:
        return self._staging.layout

    # -- reading -------------------------------------------------------------------------------------

    async def _read(
        self, loads: Sequence[BlockLoad], side: ReadSide, deadline_s: float
    ) -> list[BlockReadResult]:
        reads = []
        for load in loads:
            assert load.location is not None, load
            self._loaded.pop(load.slot, None)
            reads.append(BlockRead(load.key, load.location, self._staging.slot(load.slot)))
        if not reads:
            return []
        results = await self._in_thread(self._store.read, reads, deadline_s)
        late: dict[SlotId, threading.Event] = {}
        for load, result in zip(loads, results, strict=True):
            if result.status is ReadStatus.OK:
                self._read_bytes[side] += self._layout.full_block_bytes
                self._loaded[load.slot] = _Loaded(load.key, result.layer_checksums)
            elif result.settled is not None:
                late[load.slot] = result.settled
        if late:
            self._report_when_settled(late)
        # What tells a late read's end stays here: it does not travel between processes.
        return [replace(result, settled=None) for result in results]

    async def _verify(self, loads: Sequence[BlockLoad], deadline_s: float) -> list[BlockReadResult]:
        """Are the blocks still in their slots, as they were when they were read?"""
        if not loads:
            return []
        results = await self._in_thread(self._check_slots, list(loads), deadline_s)
        num_ok = sum(result.status is ReadStatus.OK for result in results)
        self._read_bytes[ReadSide.DRAM] += num_ok * self._layout.full_block_bytes
        return results

    def _check_slots(self, loads: list[BlockLoad], deadline_s: float) -> list[BlockReadResult]:
        """In an I/O thread: checksums take time. What the deadline cuts off is not known to be there."""
        end_s = time.monotonic() + deadline_s
        return [
            self._check_slot(load) if time.monotonic() < end_s else BlockReadResult(ReadStatus.MISSING)
            for load in loads
        ]

    def _check_slot(self, load: BlockLoad) -> BlockReadResult:
        loaded = self._loaded.get(load.slot)
        if loaded is None or loaded.key != load.key:
            return BlockReadResult(ReadStatus.MISSING)
        if layer_checksums(self._layout, self._staging.slot(load.slot)) != loaded.layer_checksums:
            return BlockReadResult(ReadStatus.CORRUPT)
        return BlockReadResult(ReadStatus.OK, loaded.layer_checksums)

    def _report_when_settled(self, late: Mapping[SlotId, threading.Event]) -> None:
        """Tell the scheduler, as late reads end, which slots nobody writes to any more."""
        loop = asyncio.get_running_loop()

        def watch() -> None:
            waiting, end_s = dict(late), time.monotonic() + _SETTLE_DEADLINE_S
            while waiting and time.monotonic() < end_s and not self._closed.is_set():
                next(iter(waiting.values())).wait(_SETTLE_LOOK_S)
                settled = [slot for slot, event in waiting.items() if event.is_set()]
                for slot in settled:
                    del waiting[slot]
                if settled:
                    with suppress(RuntimeError):  # the event loop is closed: nobody is there to be told
                        loop.call_soon_threadsafe(self._tell, settled)

        # A daemon, as a read that never ends must not hold up the end of the process.
        threading.Thread(target=watch, name=f"{self._node_id}-late", daemon=True).start()

    def _tell(self, settled: list[SlotId]) -> None:
        task = asyncio.ensure_future(self._scheduler.settled(self._node_id, settled))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _in_thread(
        self, function: Callable[[list[A], float], list[R]], batch: list[A], deadline_s: float
    ) -> list[R]:
        loop = asyncio.get_running_loop()
        bounded_s = min(deadline_s, self._io_deadline_s)
        return await loop.run_in_executor(self._threads, function, batch, bounded_s)


class NodeProcess(NodeAgent):
    """A node agent with its staging memory, which it serves to other nodes, and its store."""

    def __init__(
        self,
        node_id: NodeId,
        config: StoreConfig,
        layout: BlockLayout,
        directory: str,
        writer_id: str,
        transport: TransportSpec,
        nics: NodeNics,
        *,
        oracle: bool = False,
    ) -> None:
        """`oracle`: storage takes no time and moves no byte (engines.oracle)."""
        staging = StagingMemory.create(node_id, layout, config.staging_bytes // layout.slot_bytes)
        store: BlockStore = NullStore(layout)
        if not oracle:
            store = open_store(config, staging, directory=Path(directory), writer_id=writer_id)
        self._oracle = oracle
        super().__init__(
            node_id, store, staging, config.deadline_s, open_region_server(transport), nics.open(node_id)
        )
        if oracle:  # nothing passes the storage NIC
            self._store = replace(self._store, snic=None)

    async def moved(self) -> NodeBytes:
        return NodeBytes() if self._oracle else await super().moved()

    async def figures(self) -> dict[str, float]:
        own = await super().figures()
        if isinstance(self._store.store, SsdStore):
            own["direct_io"] = self._store.store.direct
            own["caching_stopped"] = self._store.store.caching_stopped is not None
        return own

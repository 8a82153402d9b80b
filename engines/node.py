"""A node's agent: it owns the node's staging memory, its store handle and its storage NIC.

Engines of the node map the staging memory; nobody else reads or writes the store. The agent does not decide
which slots are free (the scheduler does) nor which blocks are worth reading or keeping. How it reads is in
engines.node_reads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from engines.cluster_config import ClusterConfig
from engines.errors import NotJoined
from engines.measured import NodeBytes
from engines.node_reads import NodeReads, ReadRules
from engines.peers import SchedulerPeer
from engines.read_messages import BlockLoad, LoadId, ReadAnswer
from engines.timeline import Lanes, Span, Timeline
from engines.types import AnnouncedBlock, BlockPersist, NodeId, ReadSide, RequestId, SlotId
from kvstore.checksum import layer_checksums
from kvstore.config import StoreConfig
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout
from kvstore.limiter import LimiterHandle, NodeLimiter
from kvstore.open_store import open_store
from kvstore.open_transport import TransportSpec, open_region_server
from kvstore.region_server import RegionServer, SharedMemoryServer
from kvstore.ssd_store import SsdStore
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.storage_traffic import StorageTraffic
from kvstore.store import BlockLocation, BlockReadResult, BlockStore, BlockWrite, ReadStatus
from kvstore.traffic import TrafficClass
from kvstore.traffic_ledger import STORAGE_HOPS, TrafficLedger
from kvstore.transport import RegionHandle

BAD_STATUSES = tuple(status for status in ReadStatus if status is not ReadStatus.OK)
_PARALLEL_WRITES = 4
_PUT_AT_ONCE = 64
A = TypeVar("A")
R = TypeVar("R")


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


class MadeBlocks(Protocol):
    """Blocks that are made where they are stored; picklable."""

    def blocks(self) -> Iterator[tuple[BlockKey, BlockKey, npt.NDArray[np.uint8]]]:
        """Parent key, key and bytes of each Full Block, in order."""
        ...


class NodeAgent:
    """One node's storage side. Its methods run on one event loop; I/O runs in threads."""

    def __init__(
        self,
        node_id: NodeId,
        store: BlockStore,
        staging: StagingMemory,
        rules: ReadRules,
        server: RegionServer | None = None,
        limiter: NodeLimiter | None = None,
    ) -> None:
        """`server` lets other nodes' engines reach the staging memory; None: they map it.

        `limiter`: the node's NICs where their rates are limited; the agent owns it.
        """
        self._node_id = node_id
        self._io_deadline_s = rules.io_deadline_s
        self._limiter = limiter
        snic = None if limiter is None else limiter.snic
        self._store = StorageTraffic(store, staging.layout, TrafficLedger(), snic)
        self._staging = staging
        self._server = server or SharedMemoryServer()
        self._region = self._server.register(staging)
        self._scheduler: SchedulerPeer
        self._timeline = Timeline(node_id)
        self._write_lanes = Lanes("snic write")
        self._reads = NodeReads(node_id, self._store, staging, rules, self._timeline)
        self._threads = ThreadPoolExecutor(_PARALLEL_WRITES, thread_name_prefix=f"{node_id}-io")
        self._written_bytes = 0
        self._joined = False

    async def connect(self, scheduler: SchedulerPeer) -> None:
        """Join the cluster: `scheduler` hears how far the reads are, and of slots whose late reads ended."""
        self._scheduler = scheduler
        self._reads.connect(scheduler)
        self._joined = True

    async def handle(self) -> StagingHandle:
        return self._staging.handle

    async def region(self) -> RegionHandle:
        """By which other nodes' engines reach the staging memory."""
        return self._region

    async def load(
        self, request_id: RequestId, loads: Sequence[BlockLoad], side: ReadSide, deadline_s: float
    ) -> ReadAnswer:
        """Bring blocks into their slots; each result says whether its slot may be used.

        A block with a location is read from the store; one without must be in its slot since an earlier
        load, and is verified there: MISSING if the slot has held another block since. The answer comes when
        all is read, or as soon as some of it is to be read on the other side: then ask for the `rest`.
        """
        return await self._reads.load(request_id, loads, side, deadline_s)

    async def rest(self, load_id: LoadId) -> ReadAnswer:
        """What `load` answers next. Raises EngineFailed if there is no such load."""
        return await self._reads.rest(load_id)

    async def let_go(self, request_id: RequestId, slots: Sequence[SlotId]) -> bool:
        """Begin nothing more for a turn that broke; whether no read touches these slots of it any more."""
        return self._reads.let_go(request_id, slots)

    async def let_go_of_all(self) -> None:
        """Read for no turn any more; returns when nothing is read into any slot."""
        await self._reads.let_go_of_all(self._io_deadline_s)

    async def read_ahead(
        self, loads: Sequence[BlockLoad], deadline_s: float
    ) -> tuple[BlockReadResult | None, ...]:
        """Read blocks that no turn has asked for yet, as long as turns ask for none; None: not begun."""
        return await self._reads.read_ahead(loads, deadline_s)

    async def drop(self, request_id: RequestId) -> None:
        """Nobody wants what has not begun of the turn's loads."""
        self._reads.drop(request_id)

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
        with self._timeline.during(self._write_lanes, "write", blocks=len(blocks)):
            locations = await self._in_thread(self._store.write, writes, deadline_s)
        num_stored = sum(location is not None for location in locations)
        self._written_bytes += num_stored * self._layout.full_block_bytes
        return tuple(locations)

    async def put(self, made: MadeBlocks, weights_id: WeightsId) -> int:
        """Store and announce blocks that no engine computed; how many there now are.

        They cost the storage NIC nothing: what a run finds in the store is there before it begins.
        """
        num_stored = 0
        blocks = made.blocks()
        while batch := await asyncio.to_thread(lambda: list(islice(blocks, _PUT_AT_ONCE))):
            writes = [
                BlockWrite(key, parent, weights_id, data, layer_checksums(self._layout, data))
                for parent, key, data in batch
            ]
            locations = await self._in_thread(self._store.put, writes, self._io_deadline_s)
            stored = [
                AnnouncedBlock(write.key, write.parent, location)
                for write, location in zip(writes, locations, strict=True)
                if location is not None
            ]
            await self._scheduler.announce(stored, (), weights_id)
            num_stored += len(stored)
        return num_stored

    async def alive(self) -> int:
        """The process's id, as a sign of life."""
        if not self._joined:
            raise NotJoined(f"{self._node_id} has not joined the cluster yet")
        return os.getpid()

    async def moved(self) -> NodeBytes:
        return NodeBytes(
            read_prefill_side=self._reads.read_bytes[ReadSide.PREFILL],
            read_decode_side=self._reads.read_bytes[ReadSide.DECODE],
            read_dram=self._reads.read_bytes[ReadSide.DRAM],
            written=self._written_bytes,
            read_ahead=self._reads.ahead_bytes,
            moved_to_prefill=self._reads.moved_bytes[ReadSide.PREFILL],
            moved_to_decode=self._reads.moved_bytes[ReadSide.DECODE],
        )

    async def bad_reads(self) -> dict[str, int]:
        """Blocks that could not be read, by reason."""
        return dict(self._reads.bad_reads)

    async def figures(self) -> dict[str, float]:
        """What the storage side has met since the start, for metrics; they add up over nodes."""
        bad = {f"bad_blocks/{status.value}": self._reads.bad_reads[status.value] for status in BAD_STATUSES}
        moved = {
            f"moved_bytes/{side.value}_side": self._reads.moved_bytes[side]
            for side in (ReadSide.PREFILL, ReadSide.DECODE)
        }
        return bad | moved | self._reads.figures()

    async def storage_traffic(self) -> dict[str, int]:
        """Bytes that passed the storage NIC since the start, by hop."""
        return self._store.ledger.by_hop(STORAGE_HOPS)

    async def trace(self, every: int) -> None:
        """Record the reads of every `every`-th turn, and all writes."""
        self._timeline.sample(every)

    async def spans(self) -> tuple[Span, ...]:
        """What was recorded, for a picture."""
        return self._timeline.spans()

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
        self._reads.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()
        await asyncio.to_thread(self._server.close)
        self._staging.close()
        if self._limiter is not None:
            self._limiter.close()

    @property
    def _layout(self) -> BlockLayout:
        return self._staging.layout

    # -- inside --------------------------------------------------------------------------------------

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
    ) -> None:
        staging = StagingMemory.create(node_id, layout, config.staging_bytes // layout.slot_bytes)
        store = open_store(config, staging, directory=Path(directory), writer_id=writer_id)
        super().__init__(
            node_id, store, staging, ReadRules.of(config), open_region_server(transport), nics.open(node_id)
        )

    async def figures(self) -> dict[str, float]:
        own = await super().figures()
        if isinstance(self._store.store, SsdStore):
            own["direct_io"] = self._store.store.direct
            own["caching_stopped"] = self._store.store.caching_stopped is not None
        return own

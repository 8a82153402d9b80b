"""A scheduler with one prefill node and two decode nodes and no engines behind it: the tests play them.

Time is a clock the tests turn; only deadlines are real.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from engines.config import ReadPlanName
from engines.read_messages import LostBlock, MoveOrder, ReadReport, UnreadReads
from engines.scheduler import Scheduler
from engines.types import (
    AnnouncedBlock,
    ClusterSpeeds,
    EngineId,
    EngineInfo,
    EngineRole,
    NodeId,
    Placement,
    ReadSide,
    RequestId,
    SlotId,
    TurnRequest,
    Weights,
)
from kvstore.keys import BlockKey, KeyChain, WeightsId, chain_root
from kvstore.layout import BlockLayout, KVFormat, KVGroup
from kvstore.store import BlockLocation
from tests.engines.scheduling.turns import scheduler_config

LAYOUT = BlockLayout(KVFormat("float32", 1, (KVGroup("kv", 16),)), block_tokens=4)
WEIGHTS, NEXT_WEIGHTS = Weights(0, WeightsId("old")), Weights(1, WeightsId("new"))
PREFILL, DECODE_0, DECODE_1 = NodeId("prefill-0"), NodeId("decode-0"), NodeId("decode-1")
RECORD_BYTES = 4096
SLOTS = {PREFILL: 12, DECODE_0: 14, DECODE_1: 14}
PREFILL_1, PREFILL_1_SLOTS = NodeId("prefill-1"), 12
RESERVE = 2
LENDABLE = sum(SLOTS.values()) - 2 * RESERVE
LOAD_LIMIT = 90
KV_TOKENS = 160


class Clock:
    """Time that passes when a test says so. It starts at 0."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Bench:
    """A scheduler with its cluster registered."""

    scheduler: Scheduler
    clock: Clock
    reserves: dict[NodeId, tuple[SlotId, ...]] = field(default_factory=dict)
    requests: dict[RequestId, TurnRequest] = field(default_factory=dict)
    blocks_read: Counter[NodeId] = field(default_factory=Counter)
    busy_s: dict[NodeId, float] = field(default_factory=dict)

    def submit(self, request: TurnRequest) -> asyncio.Task[Placement]:
        self.requests[request.request_id] = request
        return asyncio.create_task(self.scheduler.submit(request))

    async def place(self, request: TurnRequest) -> Placement:
        return await asyncio.wait_for(self.submit(request), 5)

    def new_keys(self, placement: Placement) -> tuple[BlockKey, ...]:
        """Prompt blocks the turn makes."""
        return self.requests[placement.request_id].keys[placement.hit_tokens // LAYOUT.block_tokens :]

    async def end(self, placement: Placement) -> None:
        """What the engines and the client say when all goes well."""
        await self.scheduler.prefilled(placement.request_id)
        await self.scheduler.finish(placement.request_id)
        await self.store(self.new_keys(placement))
        await self.scheduler.release_slots(placement.request_id, placement.decode_slots)

    async def store(self, keys: tuple[BlockKey, ...], weights: Weights = WEIGHTS) -> None:
        await self.scheduler.announce([stored(key, weights) for key in keys], [], weights.weights_id)

    async def read(self, node_id: NodeId, num_blocks: int, bytes_per_s: float) -> None:
        """The node has read so many more blocks, at this rate, and has nothing left."""
        busy_s = num_blocks * RECORD_BYTES / bytes_per_s
        self.blocks_read[node_id] += num_blocks
        self.busy_s[node_id] = self.busy_s.get(node_id, 0.0) + busy_s
        await self.report(node_id)

    async def report(self, node_id: NodeId, *unread: UnreadReads) -> tuple[MoveOrder, ...]:
        """The node tells what it has read, and what it has not begun."""
        blocks, busy_s = self.blocks_read[node_id], self.busy_s.get(node_id, 0.0)
        return await self.scheduler.report_reads(
            ReadReport(node_id, blocks * LAYOUT.block_tokens, blocks * RECORD_BYTES, busy_s, unread)
        )

    async def lose(self, keys: Sequence[BlockKey]) -> None:
        """Somebody could not read these blocks from the store."""
        lost = [LostBlock(key, SlotId(0), ReadSide.PREFILL, late=False) for key in keys]
        await self.scheduler.hit_lost(RequestId("somebody"), lost)


async def open_bench(
    pending_deadline_s: float = 5.0,
    dram_slots: int = 0,
    read_plan: ReadPlanName = "basic",
    load_limit_tokens: int = LOAD_LIMIT,
    speeds: ClusterSpeeds | None = None,
    **settings: Any,
) -> Bench:
    clock = Clock()
    config = scheduler_config(read_plan=read_plan, pending_deadline_s=pending_deadline_s, **settings)
    scheduler = Scheduler(
        config,
        prefill_load_limit_tokens=load_limit_tokens,
        weights=WEIGHTS,
        dram_bytes=dram_slots * LAYOUT.slot_bytes,
        clock=clock,
        speeds=speeds,
    )
    bench = Bench(scheduler, clock)
    for node_id, num_slots in SLOTS.items():
        await scheduler.register_node(node_id, num_slots, LAYOUT)
    for node_id in (DECODE_0, DECODE_1):
        info = EngineInfo(EngineId(node_id), node_id, EngineRole.DECODE, KV_TOKENS)
        bench.reserves[node_id] = await scheduler.reserve_slots(info.engine_id, node_id, RESERVE)
        await scheduler.register_engine(info)
    for name in ("prefill-a", "prefill-b"):
        await scheduler.register_engine(EngineInfo(EngineId(name), PREFILL, EngineRole.PREFILL))
    return bench


async def add_prefill_node(bench: Bench) -> None:
    """A second one, with two engines."""
    await bench.scheduler.register_node(PREFILL_1, PREFILL_1_SLOTS, LAYOUT)
    for name in ("prefill-c", "prefill-d"):
        info = EngineInfo(EngineId(name), PREFILL_1, EngineRole.PREFILL)
        await bench.scheduler.register_engine(info)


def on_a_bench(
    play: Callable[[Bench], Awaitable[None]],
    pending_deadline_s: float = 5.0,
    quarantined: int = 0,
    dram_slots: int = 0,
    read_plan: ReadPlanName = "basic",
    load_limit_tokens: int = LOAD_LIMIT,
    **settings: Any,
) -> None:
    """Run a test; on the way out the books agree and every slot is free, quarantined or keeps a block."""

    async def run() -> None:
        bench = await open_bench(pending_deadline_s, dram_slots, read_plan, load_limit_tokens, **settings)
        await play(bench)
        await settle()
        bench.scheduler.check()
        figures = await bench.scheduler.figures()
        assert (figures["queue_length"], figures["placed"]) == (0, 0), figures
        assert figures["quarantined_slots"] == quarantined, figures
        assert figures["free_slots"] + figures["dram_slots"] == LENDABLE - quarantined, figures
        assert figures["dram_slots"] <= dram_slots, figures

    asyncio.run(run())


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(6):
        await asyncio.sleep(0)


def keys_of(conversation: int, num_tokens: int, weights: Weights = WEIGHTS) -> tuple[BlockKey, ...]:
    chain = KeyChain(chain_root(weights.weights_id, LAYOUT.format), LAYOUT.block_tokens)
    chain.extend(array("i", (1000 * conversation + i for i in range(num_tokens))))
    return tuple(chain.keys)


def turn(
    name: str,
    prompt_tokens: int,
    *,
    conversation: int = 0,
    max_output_tokens: int = 4,
    weights: Weights = WEIGHTS,
    deadline_s: float = 60.0,
    failed: frozenset[EngineId] = frozenset(),
    remaining_tokens: int | None = None,
) -> TurnRequest:
    return TurnRequest(
        request_id=RequestId(name),
        keys=keys_of(conversation, prompt_tokens, weights),
        prompt_tokens=prompt_tokens,
        max_output_tokens=max_output_tokens,
        weights_version=weights.version,
        deadline_s=deadline_s,
        failed_engines=failed,
        remaining_tokens=remaining_tokens,
    )


def stored(key: BlockKey, weights: Weights = WEIGHTS) -> AnnouncedBlock:
    segment = f"{weights.weights_id}.bench.0.kv"
    root = chain_root(weights.weights_id, LAYOUT.format)
    return AnnouncedBlock(key, root, BlockLocation(segment, int.from_bytes(key[:4], "big"), RECORD_BYTES, 0))


async def raises(error: type[Exception], match: str, waiting: asyncio.Task[Placement]) -> None:
    with pytest.raises(error, match=match):
        await asyncio.wait_for(waiting, 5)

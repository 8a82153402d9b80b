"""A turn's hit read by two real node agents, while the scheduler moves blocks from one to the other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineFailed
from engines.measured import NodeBytes
from engines.node import NodeAgent
from engines.node_reads import ReadRules
from engines.read_messages import BlockSpan, MovedBlock, MoveOrder, ReadReport
from engines.turn_reads import LoadedHit, TurnReads
from engines.types import EngineId, NodeId, PhaseSeconds, Placement, ReadRange, ReadSide, RequestId, SlotId
from kvstore.block_record import record_bytes
from kvstore.indexed_blocks import IndexedBlock, IndexedBlocks
from kvstore.ssd_store import SsdStore
from kvstore.staging import StagingMemory
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockWrite, ReadStatus
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, WEIGHTS, key_of, make_write, random_block, write_all

NUM_BLOCKS = 12
TURN = RequestId("turn")
PREFILL, DECODE = ReadSide.PREFILL, ReadSide.DECODE
NODES = {PREFILL: NodeId("prefill-0"), DECODE: NodeId("decode-0")}
RULES = ReadRules(2 * record_bytes(SMALL), depth=1, report_s=0.005, io_deadline_s=PLENTY_S)


class SteppedStore:
    """A store whose reads wait, each for a step of its own, until it is let go."""

    def __init__(self, store: SsdStore) -> None:
        self.steps: threading.Semaphore | None = None
        self._store = store

    def hold(self) -> None:
        self.steps = threading.Semaphore(0)

    def let_go(self) -> None:
        assert self.steps is not None
        steps, self.steps = self.steps, None
        steps.release(1000)

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        if (steps := self.steps) is not None:
            assert steps.acquire(timeout=PLENTY_S), "a test left the store waiting"
        return self._store.read(reads, deadline_s)

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        return self._store.write(writes, deadline_s)

    def close(self) -> None:
        self._store.close()


class Commander:
    """A scheduler that gives each order once, when the node that is to obey reports something unread."""

    def __init__(self) -> None:
        self.orders: dict[NodeId, list[MoveOrder]] = defaultdict(list)
        self.reports: dict[NodeId, ReadReport] = {}
        self.settled_slots: list[tuple[NodeId, SlotId]] = []
        self.num_to_lose = 0
        self.num_lost = 0

    async def report_reads(self, report: ReadReport) -> tuple[MoveOrder, ...]:
        if self.num_lost < self.num_to_lose:
            self.num_lost += 1
            raise EngineFailed("the line is cut")
        self.reports[report.node_id] = report
        return tuple(self.orders.pop(report.node_id, ())) if report.unread else ()

    async def settled(self, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        self.settled_slots += [(node_id, slot) for slot in slots]


class Pair:
    """A prefill node and a decode node over one directory, and who has them read."""

    def __init__(self, path: Path, rules: ReadRules) -> None:
        stores = {side: SsdStore(path, SMALL, writer_id=side.value, io_threads=1) for side in NODES}
        self.stores = {side: SteppedStore(store) for side, store in stores.items()}
        writes = [make_write(SMALL, number) for number in range(NUM_BLOCKS)]
        self.locations = write_all(stores[PREFILL], writes)
        self.staging = {side: StagingMemory.create(NODES[side], SMALL, 40) for side in NODES}
        self.agents = {
            side: NodeAgent(NODES[side], self.stores[side], self.staging[side], rules) for side in NODES
        }
        self.scheduler = Commander()
        self.peers: dict[NodeId, Any] = {NODES[side]: agent for side, agent in self.agents.items()}
        self.reads = TurnReads(self.peers, PLENTY_S)

    def placement(self, num_on_prefill: int) -> Placement:
        """The first blocks on the prefill side; slots 0.. there, 20.. on the decode side."""
        blocks = IndexedBlocks.of(
            [IndexedBlock(key_of(n), location) for n, location in enumerate(self.locations)]
        )
        parts = ((PREFILL, 0, num_on_prefill), (DECODE, num_on_prefill, NUM_BLOCKS))
        return Placement(
            request_id=TURN,
            prefill_engine=EngineId("prefill-0-0"),
            prefill_node=NODES[PREFILL],
            decode_engine=EngineId("decode-0-0"),
            decode_node=NODES[DECODE],
            read_plan=tuple(
                ReadRange(side, start, blocks[start:end]) for side, start, end in parts if start < end
            ),
            hit_tokens=NUM_BLOCKS * SMALL.block_tokens,
            prefill_slots=tuple(SlotId(n) for n in range(num_on_prefill)),
            decode_slots=tuple(SlotId(20 + n) for n in range(NUM_BLOCKS + 1)),
            weights_version=0,
            weights_id=WEIGHTS,
            waited=PhaseSeconds(),
        )

    def order(self, to_side: ReadSide, span: BlockSpan) -> None:
        """The side that is to give up hears of it at its next report; slots 39, 38.. on the prefill side."""
        slots = [SlotId(39 - n) for n in range(span[1] - span[0])] if to_side is PREFILL else []
        giver = DECODE if to_side is PREFILL else PREFILL
        self.scheduler.orders[NODES[giver]] = [MoveOrder(TURN, to_side, (span,), tuple(slots))]

    def assert_all_there(self, hit: LoadedHit) -> None:
        """Every block lies where it is said to lie, and each of them was read once."""
        assert [r.status for r in hit.results if r is not None] == [ReadStatus.OK] * NUM_BLOCKS
        for block, (side, slot) in enumerate(zip(hit.sides, hit.slots, strict=True)):
            there = self.staging[side].slot(slot)[: SMALL.full_block_bytes]
            assert np.array_equal(there, random_block(SMALL, block)[: SMALL.full_block_bytes]), block

    async def until(self, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PLENTY_S
        while not condition():
            assert time.monotonic() < end_s, self.scheduler.reports
            await asyncio.sleep(0.005)

    async def moved_bytes(self, side: ReadSide) -> tuple[int, int]:
        """By the side's node: blocks moved to the prefill side, and to the decode side."""
        moved = await self.agents[side].moved()
        block = SMALL.full_block_bytes
        return moved.moved_to_prefill // block, moved.moved_to_decode // block


@asynccontextmanager
async def open_pair(path: Path, rules: ReadRules = RULES) -> AsyncIterator[Pair]:
    pair = Pair(path, rules)
    try:
        for agent in pair.agents.values():
            await agent.connect(pair.scheduler)  # type: ignore[arg-type]
        yield pair
    finally:
        for store in pair.stores.values():
            if store.steps is not None:
                store.let_go()
        for agent in pair.agents.values():
            await agent.close()


@pytest.mark.parametrize("num_on_prefill", [0, 5, NUM_BLOCKS])
def test_both_sides_read_their_blocks_and_nothing_moves_without_an_order(
    num_on_prefill: int, tmp_path: Path
) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            hit = await pair.reads.load(pair.placement(num_on_prefill))
            pair.assert_all_there(hit)
            assert hit.moved == ()
            assert hit.sides == (PREFILL,) * num_on_prefill + (DECODE,) * (NUM_BLOCKS - num_on_prefill)
            assert not hit.lost(pair.placement(num_on_prefill))
            if num_on_prefill:
                report = pair.scheduler.reports
                await pair.until(lambda: NODES[PREFILL] in report)
                await pair.until(
                    lambda: report[NODES[PREFILL]].finished_tokens == num_on_prefill * SMALL.block_tokens
                )

    asyncio.run(run())


@pytest.mark.parametrize("to_side", [PREFILL, DECODE])
def test_what_a_stuck_side_has_not_begun_is_read_on_the_other_side_at_once(
    to_side: ReadSide, tmp_path: Path
) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            slow = DECODE if to_side is PREFILL else PREFILL
            pair.stores[slow].hold()
            pair.order(to_side, (0, NUM_BLOCKS))
            placement = pair.placement(6)
            first = 0 if slow is PREFILL else 6
            loading = asyncio.ensure_future(pair.reads.load(placement))
            # Two blocks have begun on the slow side; the others are all read while it stands still.
            await pair.until(
                lambda: (
                    NODES[to_side] in pair.scheduler.reports
                    and pair.scheduler.reports[NODES[to_side]].finished_tokens == 10 * SMALL.block_tokens
                )
            )
            assert not loading.done()
            pair.stores[slow].let_go()
            hit = await loading
            pair.assert_all_there(hit)
            gone = range(first + 2, first + 6)
            assert [moved.block for moved in hit.moved] == list(gone)
            assert {moved.side for moved in hit.moved} == {to_side}
            assert hit.sides.count(slow) == 2
            if to_side is PREFILL:  # the order's slots, less those of blocks that had begun
                assert [moved.slot for moved in hit.moved] == [39 - block for block in gone]
            else:
                assert [moved.slot for moved in hit.moved] == [placement.decode_slots[b] for b in gone]
            assert await pair.moved_bytes(slow) == ((4, 0) if to_side is PREFILL else (0, 4))
            assert await pair.moved_bytes(to_side) == (0, 0)

    asyncio.run(run())


def test_a_block_may_move_there_and_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            for store in pair.stores.values():
                store.hold()
            pair.order(DECODE, (4, 6))
            loading = asyncio.ensure_future(pair.reads.load(pair.placement(6)))
            reports = pair.scheduler.reports
            await pair.until(lambda: NODES[DECODE] in reports and len(reports[NODES[DECODE]].unread) == 1)
            await pair.until(lambda: (4, 6) in reports[NODES[DECODE]].unread[0].spans)
            pair.order(PREFILL, (5, 6))
            await pair.until(lambda: reports[NODES[DECODE]].finished_tokens == SMALL.block_tokens)
            for store in pair.stores.values():
                store.let_go()
            hit = await loading
            pair.assert_all_there(hit)
            assert hit.moved == (MovedBlock(4, DECODE, SlotId(24)), MovedBlock(5, PREFILL, SlotId(39)))

    asyncio.run(run())


class DeadNode:
    """A node that answers nobody."""

    async def load(self, *args: object) -> None:
        raise EngineFailed("decode-0 is dead")

    drop = rest = load


def test_a_node_that_dies_as_blocks_move_to_it_fails_the_turn_once_the_other_side_is_through(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            pair.stores[PREFILL].hold()
            pair.peers[NODES[DECODE]] = DeadNode()
            loading = asyncio.ensure_future(pair.reads.load(pair.placement(NUM_BLOCKS)))
            pair.order(DECODE, (8, NUM_BLOCKS))
            # The live side drops what it has not begun: nobody can use it.
            await pair.until(
                lambda: (
                    NODES[PREFILL] in pair.scheduler.reports
                    and not pair.scheduler.reports[NODES[PREFILL]].unread
                )
            )
            assert not loading.done()
            pair.stores[PREFILL].let_go()
            with pytest.raises(EngineFailed, match="decode-0 is dead"):
                await loading
            assert pair.reads.unanswered_by(TURN) == {NODES[DECODE]}
            assert not pair.reads.unanswered_by(TURN)
            assert len(pair.reads) == 0
            assert (await pair.agents[PREFILL].moved()).read_prefill_side == 2 * SMALL.full_block_bytes

    asyncio.run(run())


def test_reports_that_get_lost_are_made_up_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            pair.scheduler.num_to_lose = 3
            pair.stores[PREFILL].hold()
            pair.order(DECODE, (2, NUM_BLOCKS))
            loading = asyncio.ensure_future(pair.reads.load(pair.placement(NUM_BLOCKS)))
            reports = pair.scheduler.reports
            await pair.until(lambda: NODES[DECODE] in reports)
            pair.scheduler.num_to_lose = 6
            pair.stores[PREFILL].let_go()
            pair.assert_all_there(await loading)
            # Both totals arrive in the end: each block was finished or given up where it was asked for.
            await pair.until(lambda: reports[NODES[PREFILL]].finished_tokens == 12 * SMALL.block_tokens)
            await pair.until(lambda: reports[NODES[DECODE]].finished_tokens == 10 * SMALL.block_tokens)
            assert pair.scheduler.num_lost == 6

    asyncio.run(run())


def test_an_aborted_turn_reads_no_more_than_it_has_begun_and_loses_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            for store in pair.stores.values():
                store.hold()
            placement = pair.placement(6)
            loading = asyncio.ensure_future(pair.reads.load(placement))
            reports = pair.scheduler.reports
            await pair.until(lambda: len(reports) == 2)
            await pair.reads.drop(TURN)
            for store in pair.stores.values():
                store.let_go()
            hit = await loading
            assert not hit.is_whole
            assert [r is not None for r in hit.results] == ([True] * 2 + [False] * 4) * 2
            assert not hit.lost(placement)
            await pair.until(
                lambda: all(r.finished_tokens == 6 * SMALL.block_tokens for r in reports.values())
            )
            assert await pair.agents[PREFILL].bad_reads() == {}

    asyncio.run(run())


def test_blocks_whose_time_is_over_before_they_begin_are_late_and_their_slots_settled(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            pair.reads = TurnReads(pair.peers, 0.1)
            pair.stores[PREFILL].hold()
            placement = pair.placement(NUM_BLOCKS)
            loading = asyncio.ensure_future(pair.reads.load(placement))
            await pair.until(lambda: len(pair.scheduler.settled_slots) == NUM_BLOCKS - 2)
            pair.stores[PREFILL].let_go()
            lost = (await loading).lost(placement)
            assert set(lost) >= set(range(2, NUM_BLOCKS))
            assert all(block.late for block in lost.values())
            assert (await pair.agents[PREFILL].bad_reads())["timed_out"] == len(lost)

    asyncio.run(run())


def test_a_node_says_so_when_it_knows_of_no_such_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            with pytest.raises(EngineFailed, match="knows of no load 7"):
                await pair.agents[PREFILL].rest(7)  # type: ignore[arg-type]

    asyncio.run(run())


def test_a_node_counts_what_it_has_read_and_how_long_that_took(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_pair(tmp_path) as pair:
            await pair.reads.load(pair.placement(5))
            moved = await pair.agents[PREFILL].moved()
            assert moved == NodeBytes(read_prefill_side=5 * SMALL.full_block_bytes)
            figures = await pair.agents[PREFILL].figures()
            assert figures["read_queue_bytes"] == 0
            assert figures["read_busy_s"] > 0

    asyncio.run(run())

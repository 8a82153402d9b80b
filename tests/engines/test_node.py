"""A node agent on a real store: what it says of blocks that are in its memory already, and of late reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from engines.node import NodeAgent
from engines.node_reads import ReadRules
from engines.read_messages import BlockLoad, MoveOrder, ReadReport
from engines.types import NodeId, ReadSide, RequestId, SlotId
from kvstore.files import Files, PosixFiles
from kvstore.ssd_store import SsdStore
from kvstore.staging import StagingMemory
from kvstore.store import BlockLocation, BlockReadResult, ReadStatus
from tests.engines.faulty_files import GatedFiles
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, key_of, make_write, write_all

NODE = NodeId("prefill-0")
RULES = ReadRules(chunk_bytes=1 << 20, depth=1, report_s=0.01, io_deadline_s=PLENTY_S)


class Listener:
    """A scheduler that hears of settled slots."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[NodeId, SlotId]] = asyncio.Queue()

    async def settled(self, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        for slot in slots:
            self.heard.put_nowait((node_id, slot))

    async def report_reads(self, report: ReadReport) -> tuple[MoveOrder, ...]:
        return ()


class Node:
    """A node agent with four slots and two stored blocks, 1 and 2."""

    def __init__(self, path: Path, files: Files) -> None:
        self.staging = StagingMemory.create(NODE, SMALL, 4)
        store = SsdStore(path, SMALL, writer_id="w", io_threads=1, files=files)
        self.locations = write_all(store, [make_write(SMALL, 1), make_write(SMALL, 2)])
        self.agent = NodeAgent(NODE, store, self.staging, RULES)
        self.listener = Listener()

    async def load(
        self, slot: int, number: int, *, here: bool = False, deadline_s: float = PLENTY_S
    ) -> BlockReadResult:
        """Load block `number` into the slot, or see that it is there."""
        location: BlockLocation | None = None if here else self.locations[number - 1]
        load = BlockLoad(number, SlotId(slot), key_of(number), location)
        (result,) = await self.load_all([load], deadline_s)
        return result

    async def load_all(
        self, loads: Sequence[BlockLoad], deadline_s: float = PLENTY_S
    ) -> list[BlockReadResult]:
        answer = await self.agent.load(RequestId("turn"), loads, ReadSide.PREFILL, deadline_s)
        assert answer.results is not None
        return [result for result in answer.results if result is not None]


@asynccontextmanager
async def open_node(path: Path, files: Files | None = None) -> AsyncIterator[Node]:
    node = Node(path, files or PosixFiles())
    await node.agent.connect(node.listener)  # type: ignore[arg-type]
    try:
        yield node
    finally:
        await node.agent.close()


def test_a_block_that_was_read_is_found_in_its_slot_with_the_same_checksums(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_node(tmp_path) as node:
            read = await node.load(0, 1)
            found = await node.load(0, 1, here=True)
            assert (read.status, found) == (ReadStatus.OK, read)
            moved = await node.agent.moved()
            assert moved.read_dram == moved.read_prefill_side == SMALL.full_block_bytes

    asyncio.run(run())


def test_a_slot_that_holds_another_block_by_now_or_none_is_a_miss(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_node(tmp_path) as node:
            await node.load(0, 1)
            await node.load(0, 2)
            statuses = [(await node.load(slot, 1, here=True)).status for slot in (0, 3)]
            assert statuses == [ReadStatus.MISSING, ReadStatus.MISSING]
            assert (await node.agent.bad_reads()) == {"missing": 2}
            assert (await node.agent.figures())["bad_blocks/missing"] == 2

    asyncio.run(run())


def test_a_bit_that_flipped_in_memory_is_seen(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_node(tmp_path) as node:
            await node.load(0, 1)
            node.staging.slot(0)[SMALL.full_block_bytes - 1] ^= np.uint8(1)
            assert (await node.load(0, 1, here=True)).status is ReadStatus.CORRUPT
            assert (await node.agent.moved()).read_dram == 0

    asyncio.run(run())


def test_a_read_that_failed_leaves_nothing_to_be_found(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_node(tmp_path) as node:
            await node.load(0, 1)
            lost = BlockLoad(1, SlotId(0), key_of(1), BlockLocation("w0.gone.000001.kv", 4096, 8192, 0))
            (result,) = await node.load_all([lost])
            assert result.status is ReadStatus.MISSING
            assert (await node.load(0, 1, here=True)).status is ReadStatus.MISSING

    asyncio.run(run())


def test_one_load_may_bring_some_blocks_and_find_others_and_answers_in_order(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_node(tmp_path) as node:
            await node.load(1, 2)
            loads = [
                BlockLoad(2, SlotId(1), key_of(2), None),
                BlockLoad(1, SlotId(0), key_of(1), node.locations[0]),
                BlockLoad(3, SlotId(2), key_of(2), None),
            ]
            results = await node.load_all(loads)
            assert [r.status for r in results] == [ReadStatus.OK, ReadStatus.OK, ReadStatus.MISSING]
            assert results[0].layer_checksums != results[1].layer_checksums

    asyncio.run(run())


def test_the_scheduler_hears_of_a_late_read_when_it_has_ended_and_not_before(tmp_path: Path) -> None:
    async def run() -> None:
        files = GatedFiles()
        async with open_node(tmp_path, files) as node:
            files.reads.shut()
            try:
                assert (await node.load(2, 1, deadline_s=0.05)).status is ReadStatus.TIMED_OUT
                await files.reads.reached()
                assert node.listener.heard.empty()
            finally:
                files.reads.open()
            heard = await asyncio.wait_for(node.listener.heard.get(), PLENTY_S)
            assert heard == (NODE, 2)

    asyncio.run(run())

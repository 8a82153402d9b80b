"""Nodes report what they have not begun to read, and the scheduler has the other side read some of it."""

from __future__ import annotations

import asyncio

import pytest

from engines.read_messages import BlockSpan, LostBlock, MovedBlock, MoveOrder, ReadReport, UnreadReads
from engines.types import Placement, ReadSide, RequestId, SlotId
from tests.engines.scheduler_bench import PREFILL, RECORD_BYTES, Bench, keys_of, on_a_bench, settle, turn

FAST, SLOW = 1e6, 1e5


async def ask(
    bench: Bench, placement: Placement, side: ReadSide, *spans: BlockSpan, ahead_bytes: int = 0
) -> tuple[MoveOrder, ...]:
    """The side's node tells what it has not begun of the turn's blocks."""
    unread = UnreadReads(placement.request_id, side, spans, ahead_bytes)
    return await bench.report(placement.read_node(side), unread)


async def place_split(bench: Bench, num_blocks: int = 7) -> Placement:
    """A turn of which the prefill side reads all blocks but the last three."""
    await bench.store(keys_of(0, 4 * num_blocks))
    placement = await bench.place(turn("t", 4 * num_blocks + 2))
    assert [(p.side, len(p.blocks)) for p in placement.read_plan] == [
        (ReadSide.PREFILL, num_blocks - num_blocks // 2),
        (ReadSide.DECODE, num_blocks // 2),
    ]
    return placement


def test_what_a_slow_prefill_side_has_not_begun_is_read_on_the_decode_side() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, SLOW)
        await bench.read(placement.decode_node, 10, FAST)
        (order,) = await ask(bench, placement, ReadSide.PREFILL, (1, 4))
        assert (order.to_side, order.spans, order.slots) == (ReadSide.DECODE, ((1, 4),), ())
        moved = [MovedBlock(n, ReadSide.DECODE, placement.decode_slots[n]) for n in range(1, 4)]
        await bench.scheduler.prefilled(placement.request_id, moved)
        figures = await bench.scheduler.figures()
        assert (figures["moved_ranges"], figures["moved_blocks"]) == (1, 3)
        await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_what_moves_to_the_prefill_side_comes_with_slots_that_are_released_when_it_is_prefilled() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, FAST)
        await bench.read(placement.decode_node, 10, SLOW)
        free = (await bench.scheduler.figures())["free_slots"]
        (order,) = await ask(bench, placement, ReadSide.DECODE, (4, 7))
        assert (order.to_side, order.spans, len(order.slots)) == (ReadSide.PREFILL, ((4, 7),), 3)
        assert not set(order.slots) & set(placement.prefill_slots)
        assert (await bench.scheduler.figures())["free_slots"] == free - 3
        await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_nothing_moves_to_a_prefill_side_that_lacks_slots_or_for_which_somebody_waits() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, FAST)
        await bench.read(placement.decode_node, 10, SLOW)
        await bench.store(keys_of(1, 28))
        other = await bench.place(turn("other", 30, conversation=1))
        await bench.store(keys_of(2, 36))
        waiting = bench.submit(turn("waiting", 38, conversation=2))
        await settle()
        assert not waiting.done()
        assert await ask(bench, placement, ReadSide.DECODE, (4, 7)) == ()
        await bench.end(other)
        await bench.end(placement)
        await bench.end(await waiting)

    on_a_bench(play, read_plan="split")


def test_a_block_that_moves_back_has_its_slot_still() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, SLOW)
        await bench.read(placement.decode_node, 10, FAST)
        assert await ask(bench, placement, ReadSide.PREFILL, (1, 4))
        await bench.read(PREFILL, 1000, 100 * FAST)
        await bench.read(placement.decode_node, 100, SLOW)
        free = (await bench.scheduler.figures())["free_slots"]
        (order,) = await ask(bench, placement, ReadSide.DECODE, (2, 4))
        assert order.slots == placement.prefill_slots[2:4]
        assert (await bench.scheduler.figures())["free_slots"] == free
        await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_dram_keeps_what_was_read_on_the_prefill_side_in_the_end() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, FAST)
        await bench.read(placement.decode_node, 10, SLOW)
        (order,) = await ask(bench, placement, ReadSide.DECODE, (4, 7))
        moved = [
            MovedBlock(1, ReadSide.DECODE, placement.decode_slots[1]),
            MovedBlock(5, ReadSide.PREFILL, order.slots[1]),
        ]
        await bench.scheduler.prefilled(placement.request_id, moved)
        await bench.end(placement)
        again = await bench.place(turn("again", 30))
        kept = [n for n, (side, _, _) in enumerate(again.hit_blocks()) if side is ReadSide.DRAM]
        assert kept == [0, 2, 3, 5]
        slots = {n: slot for n, (side, slot, _) in enumerate(again.hit_blocks()) if side is ReadSide.DRAM}
        assert slots[5] == order.slots[1]
        await bench.end(again)

    on_a_bench(play, read_plan="split", dram_slots=8)


@pytest.mark.parametrize(
    ("plan", "rebalance"), [("split", False), ("dual", True), ("basic", True), ("alternate", True)]
)
def test_reads_move_only_where_both_sides_read_and_it_is_set(plan: str, rebalance: bool) -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 28))
        placement = await bench.place(turn("t", 30))
        await bench.read(PREFILL, 10, SLOW)
        await bench.read(placement.decode_node, 10, FAST)
        assert await ask(bench, placement, ReadSide.PREFILL, (1, 4)) == ()
        await bench.end(placement)

    on_a_bench(play, read_plan=plan, rebalance=rebalance)  # type: ignore[arg-type]


def test_reads_of_turns_that_are_over_or_unknown_do_not_move() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, SLOW)
        await bench.read(placement.decode_node, 10, FAST)
        await bench.scheduler.prefilled(placement.request_id)
        assert await ask(bench, placement, ReadSide.PREFILL, (1, 4)) == ()
        unread = UnreadReads(RequestId("nobody"), ReadSide.PREFILL, ((0, 4),), 0)
        assert await bench.scheduler.report_reads(ReadReport(PREFILL, 0, 0, 0.0, (unread,))) == ()
        await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_a_moved_block_that_is_late_is_set_aside_where_it_was_read_last() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, FAST)
        await bench.read(placement.decode_node, 10, SLOW)
        (order,) = await ask(bench, placement, ReadSide.DECODE, (4, 7))
        key = keys_of(0, 28)[5]
        lost = LostBlock(key, order.slots[1], ReadSide.PREFILL, late=True)
        await bench.scheduler.hit_lost(placement.request_id, [lost])
        assert (await bench.scheduler.figures())["quarantined_slots"] == 1
        await bench.scheduler.settled(PREFILL, [order.slots[1]])

    on_a_bench(play, read_plan="split")


def test_with_nodes_that_never_report_turns_are_placed_by_what_they_have_to_read() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 28))
        for number in range(5):
            placement = await bench.place(turn(f"t{number}", 30))
            assert (await bench.scheduler.figures())["read_queue_tokens"] == 28
            await bench.end(placement)
        assert (await bench.scheduler.figures())["read_queue_tokens"] == 0

    on_a_bench(play, read_plan="split")


def test_what_a_turn_gave_up_counts_for_the_turns_behind_it_in_the_same_report() -> None:
    async def play(bench: Bench) -> None:
        for conversation in (0, 1):
            await bench.store(keys_of(conversation, 20))
        await bench.read(PREFILL, 10, FAST)
        placed = [await bench.place(turn(f"t{c}", 22, conversation=c)) for c in (0, 1)]
        for placement in placed:
            await bench.read(placement.decode_node, 10, FAST)
        unread = tuple(
            UnreadReads(p.request_id, ReadSide.PREFILL, ((0, 3),), ahead)
            for p, ahead in zip(placed, (0, 100 * RECORD_BYTES), strict=True)
        )
        orders = await bench.report(PREFILL, *unread)
        assert [order.request_id for order in orders] == ["t1"], "the one with 100 blocks ahead of it"
        for placement in placed:
            await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_slots_of_an_order_that_nobody_heard_of_come_back_when_the_turn_ends() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        await bench.read(PREFILL, 10, FAST)
        await bench.read(placement.decode_node, 10, SLOW)
        first = await ask(bench, placement, ReadSide.DECODE, (4, 7))
        again = await ask(bench, placement, ReadSide.DECODE, (4, 7))
        assert not again or again[0].slots == first[0].slots
        await bench.scheduler.finish(placement.request_id)

    on_a_bench(play, read_plan="split")


def test_at_least_seven_tenths_move_when_a_storage_nic_falls_to_a_tenth_while_it_reads() -> None:
    # The issue's own case, on the books alone: what the slow side has not begun when the other is told.
    async def play(bench: Bench) -> None:
        placement = await place_split(bench, num_blocks=10)
        unread = 4
        await bench.read(placement.decode_node, 100, FAST)
        await bench.read(PREFILL, 100, FAST)
        await bench.read(PREFILL, 100, FAST / 10)
        (order,) = await ask(bench, placement, ReadSide.PREFILL, (1, 5))
        assert sum(end - start for start, end in order.spans) >= 0.7 * unread
        await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_reports_and_orders_of_many_nodes_at_once_agree() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        reports = [
            ReadReport(placement.read_node(side), 4 * n, RECORD_BYTES * n, 0.01 * n, ())
            for n in range(4)
            for side in (ReadSide.PREFILL, ReadSide.DECODE)
        ]
        await asyncio.gather(*(bench.scheduler.report_reads(report) for report in reports))
        bench.scheduler.check()
        assert (await bench.scheduler.figures())["read_queue_tokens"] == 28 - 12 - 12
        await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_a_slot_of_the_prefill_side_is_found_by_its_block() -> None:
    async def play(bench: Bench) -> None:
        placement = await place_split(bench)
        found: list[SlotId | None] = [placement.prefill_slot(block) for block in range(8)]
        assert found == [*placement.prefill_slots, None, None, None, None]
        await bench.end(placement)

    on_a_bench(play, read_plan="split")

"""The scheduler's books: who gets what, when, and that everything comes back."""

from __future__ import annotations

import asyncio

import pytest

from engines.config import ReadPlanName
from engines.errors import PauseTimeout, PlacementTimeout, RequestRefused
from engines.read_messages import LostBlock, ReadReport
from engines.types import ClusterSpeeds, Placement, ReadSide, RequestId
from tests.engines.scheduler_bench import (
    DECODE_0,
    DECODE_1,
    LENDABLE,
    NEXT_WEIGHTS,
    PREFILL,
    WEIGHTS,
    Bench,
    keys_of,
    on_a_bench,
    raises,
    settle,
    turn,
)

# Reservation ------------------------------------------------------------------------------------


def test_a_turn_gets_slots_for_its_whole_prompt_at_decode_and_for_its_hit_at_prefill() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        placement = await bench.place(turn("a", 18))
        assert placement.hit_tokens == 12
        assert [block.key for part in placement.read_plan for block in part.blocks] == list(keys_of(0, 12))
        assert (len(placement.prefill_slots), len(placement.decode_slots)) == (3, 5)
        assert not set(placement.decode_slots) & set(bench.reserves[placement.decode_node])
        await bench.end(placement)

    on_a_bench(play)


def test_a_turn_that_lacks_slots_on_one_side_takes_none_on_the_other() -> None:
    async def play(bench: Bench) -> None:
        for conversation in (0, 1):
            await bench.store(keys_of(conversation, 28, WEIGHTS))
        first = await bench.place(turn("first", 30, conversation=0))
        free = (await bench.scheduler.figures())["free_slots"]
        # 7 of 12 prefill slots are taken; decode-1 has 12 free for the 8 it needs.
        second = bench.submit(turn("second", 30, conversation=1))
        await settle()
        assert not second.done()
        assert (await bench.scheduler.figures())["free_slots"] == free
        await bench.scheduler.prefilled(first.request_id)
        placement = await second
        assert placement.decode_node == DECODE_1
        await bench.end(first)
        await bench.end(placement)

    on_a_bench(play)


def test_a_whole_stored_prompt_still_computes_its_last_block() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        for prompt_tokens, hit_tokens in ((11, 8), (12, 8), (13, 12), (4, 0), (1, 0), (5, 4)):
            placement = await bench.place(turn(f"p{prompt_tokens}", prompt_tokens))
            assert placement.hit_tokens == hit_tokens
            await bench.end(placement)

    on_a_bench(play)


def test_turns_are_placed_in_the_order_they_came_though_a_later_one_would_fit() -> None:
    async def play(bench: Bench) -> None:
        big = [await bench.place(turn(f"big{i}", 40, conversation=i)) for i in range(2)]
        waiting = [
            bench.submit(turn("large", 40, conversation=2)),
            bench.submit(turn("small", 4, conversation=3)),
        ]
        await settle()
        assert not any(task.done() for task in waiting)
        await bench.end(big[0])
        for task in waiting:
            await bench.end(await task)
        await bench.end(big[1])

    on_a_bench(play)


def test_when_the_head_of_the_queue_goes_away_the_next_is_placed_at_once() -> None:
    async def play(bench: Bench) -> None:
        big = [await bench.place(turn(f"big{i}", 40, conversation=i)) for i in range(2)]
        head = bench.submit(turn("head", 40, conversation=2))
        second = bench.submit(turn("second", 40, conversation=2))
        small = bench.submit(turn("small", 4, conversation=3))
        await settle()
        assert not small.done()
        head.cancel()
        await bench.scheduler.finish(RequestId("second"))
        await settle()
        assert small.done()
        await raises(PlacementTimeout, "second was taken back", second)
        for placement in (*big, small.result()):
            await bench.end(placement)

    on_a_bench(play)


def test_engines_that_failed_the_turn_before_are_avoided() -> None:
    async def play(bench: Bench) -> None:
        first = await bench.place(turn("t#1", 8))
        failed = frozenset({first.prefill_engine, first.decode_engine})
        await bench.scheduler.finish(first.request_id)
        second = await bench.place(turn("t#2", 8, failed=failed))
        assert not failed & {second.prefill_engine, second.decode_engine}
        await bench.end(second)

    on_a_bench(play)


def test_a_prefill_engine_over_its_load_limit_gets_no_more_until_it_is_done() -> None:
    async def play(bench: Bench) -> None:
        # Two engines; a turn counts the tokens of its prompt, the limit is 5.
        placed = [await bench.place(turn(f"t{i}", 4)) for i in range(4)]
        assert [p.prefill_engine for p in placed] == ["prefill-a", "prefill-b"] * 2
        fifth = bench.submit(turn("t4", 4))
        await settle()
        assert not fifth.done()
        await bench.scheduler.prefilled(placed[1].request_id)
        assert (await fifth).prefill_engine == "prefill-b"
        for placement in (*placed, fifth.result()):
            await bench.end(placement)

    on_a_bench(play, load_limit_tokens=5)


# Refusals and deadlines -------------------------------------------------------------------------


def test_a_prompt_no_node_could_ever_hold_is_refused_naming_both_sizes() -> None:
    async def play(bench: Bench) -> None:
        await raises(
            RequestRefused,
            r"t needs 13 staging slots for its 49 prompt tokens, the smallest node lends 12; raise kvstore\.",
            bench.submit(turn("t", 49)),
        )

    on_a_bench(play)


def test_a_context_no_decode_engine_could_ever_hold_is_refused_naming_both_sizes() -> None:
    async def play(bench: Bench) -> None:
        await raises(
            RequestRefused,
            r"t may grow to 161 tokens, the largest decode engine holds 160; raise engines\.decode_kv_bytes",
            bench.submit(turn("t", 40, max_output_tokens=121)),
        )

    on_a_bench(play)


def test_the_largest_turn_that_is_not_refused_is_placed() -> None:
    async def play(bench: Bench) -> None:
        await bench.end(await bench.place(turn("t", 48, max_output_tokens=112)))

    on_a_bench(play)


def test_a_turn_that_finds_no_place_by_its_deadline_leaves_nothing_behind() -> None:
    async def play(bench: Bench) -> None:
        big = [await bench.place(turn(f"big{i}", 40, conversation=i)) for i in range(2)]
        late = bench.submit(turn("late", 40, conversation=2, deadline_s=0.05))
        await raises(PlacementTimeout, r"late found no place within 0\.1 s; 1 turns wait, 2 are placed", late)
        await bench.scheduler.finish(RequestId("late"))
        for placement in big:
            await bench.end(placement)

    on_a_bench(play)


def test_a_turn_of_other_weights_is_refused_naming_both_versions() -> None:
    async def play(bench: Bench) -> None:
        await raises(
            RequestRefused,
            "t names weights version 1, the engines hold version 0",
            bench.submit(turn("t", 8, weights=NEXT_WEIGHTS)),
        )

    on_a_bench(play)


# Waiting for blocks that are being persisted ----------------------------------------------------


def test_a_lookup_waits_for_pending_blocks_and_hits_them() -> None:
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 12)
        await bench.store(keys[:1])
        await bench.scheduler.expect(keys[1:], WEIGHTS.weights_id)
        waiting = bench.submit(turn("t", 14))
        await settle()
        bench.clock.now_s += 2.0
        await bench.store(keys[1:2])
        await settle()
        assert not waiting.done()
        bench.clock.now_s += 1.0
        await bench.store(keys[2:])
        placement = await waiting
        assert placement.hit_tokens == 12
        assert placement.waited.persist_wait == 3.0
        assert placement.waited.total == 3.0
        await bench.end(placement)

    on_a_bench(play)


def test_a_block_whose_persist_failed_ends_the_hit() -> None:
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 12)
        await bench.store(keys[:1])
        await bench.store(keys[2:])
        await bench.scheduler.expect(keys[1:2], WEIGHTS.weights_id)
        waiting = bench.submit(turn("t", 14))
        await settle()
        await bench.scheduler.announce([], keys[1:2], WEIGHTS.weights_id)
        placement = await waiting
        assert placement.hit_tokens == 4
        await bench.end(placement)

    on_a_bench(play)


def test_blocks_that_are_stored_need_no_writing_and_pending_ones_do() -> None:
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 16)
        await bench.store(keys[:2])
        assert await bench.scheduler.expect(keys[1:3], WEIGHTS.weights_id) == keys[1:2]
        assert await bench.scheduler.stored(keys) == keys[:2]
        assert await bench.scheduler.expect(keys[2:3], WEIGHTS.weights_id) == ()
        for _ in range(2):
            await bench.scheduler.announce([], keys[1:3], WEIGHTS.weights_id)
        assert await bench.scheduler.stored(keys) == keys[:2]

    on_a_bench(play)


def test_past_the_deadline_the_first_pending_block_ends_the_hit() -> None:
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 12)
        await bench.store((keys[0], keys[2]))
        await bench.scheduler.expect(keys[1:2], WEIGHTS.weights_id)
        placement = await bench.place(turn("t", 14))
        assert placement.hit_tokens == 4
        await bench.end(placement)
        await bench.store(keys[1:2])

    on_a_bench(play, pending_deadline_s=0.05)


def test_a_pending_block_that_could_be_no_hit_is_not_waited_for() -> None:
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 12)
        await bench.scheduler.expect(keys[2:], WEIGHTS.weights_id)
        await bench.store(keys[:2])
        placement = bench.submit(turn("t", 12))  # its last block is computed in any case
        await settle()
        assert placement.done()
        await bench.end(placement.result())
        await bench.store(keys[2:])

    on_a_bench(play)


def test_a_turn_whose_hit_shrinks_needs_fewer_slots_and_is_placed_at_once() -> None:
    async def play(bench: Bench) -> None:
        for conversation in (0, 1):
            await bench.store(keys_of(conversation, 28))
        first = await bench.place(turn("first", 30))
        second = bench.submit(turn("second", 30, conversation=1))
        await settle()
        assert not second.done()
        await bench.lose(keys_of(1, 28)[2:3])
        await settle()
        assert second.done()
        for placement in (first, second.result()):
            await bench.end(placement)

    on_a_bench(play)


def test_turns_of_one_prompt_compute_it_once() -> None:
    async def play(bench: Bench) -> None:
        group = [bench.submit(turn(f"sample{i}", 14)) for i in range(3)]
        await settle()
        assert [task.done() for task in group] == [True, False, False]
        bench.clock.now_s = 4.0
        await bench.end(await group[0])
        for task in group[1:]:
            placement = await task
            assert (placement.hit_tokens, placement.waited.persist_wait) == (12, 4.0)
            await bench.end(placement)

    on_a_bench(play)


def test_a_turn_that_fails_before_its_hand_over_lets_the_next_make_its_blocks() -> None:
    async def play(bench: Bench) -> None:
        group = [bench.submit(turn(f"sample{i}", 14)) for i in range(2)]
        await bench.scheduler.finish((await group[0]).request_id)
        placement = await group[1]
        assert placement.hit_tokens == 0
        await bench.end(placement)

    on_a_bench(play)


def test_a_turn_whose_decode_engine_died_lets_the_next_make_its_blocks() -> None:
    async def play(bench: Bench) -> None:
        group = [bench.submit(turn(f"sample{i}", 14)) for i in range(2)]
        first = await group[0]
        await bench.scheduler.prefilled(first.request_id)
        await bench.scheduler.finish(first.request_id, resolved=False)
        placement = await group[1]
        assert placement.hit_tokens == 0
        await bench.end(placement)

    on_a_bench(play, quarantined=4)


def test_a_turn_that_waits_for_a_block_does_not_hold_up_the_turns_behind_it() -> None:
    async def play(bench: Bench) -> None:
        first = await bench.place(turn("first", 14))
        same, other = bench.submit(turn("same", 14)), bench.submit(turn("other", 14, conversation=1))
        await bench.end(await other)
        assert not same.done()
        await bench.end(first)
        await bench.end(await same)

    on_a_bench(play)


def test_a_turn_taken_back_while_it_waits_for_pending_blocks_is_never_placed() -> None:
    # Across processes a cancelled caller does not end its submit; its `finish` has to.
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 8)
        await bench.scheduler.expect(keys, WEIGHTS.weights_id)
        waiting = bench.submit(turn("t", 10))
        await settle()
        await bench.scheduler.finish(RequestId("t"))
        await bench.store(keys)
        await raises(PlacementTimeout, "t was taken back", waiting)

    on_a_bench(play)


# Time -------------------------------------------------------------------------------------------


def test_waiting_for_engines_is_queueing_and_waiting_for_slots_is_buffer_wait() -> None:
    async def play(bench: Bench) -> None:
        # Both prefill engines are over their limit, and decode slots for 40 tokens are free on no node.
        big = [await bench.place(turn(f"big{i}", 40, conversation=i)) for i in range(2)]
        busy = [await bench.place(turn(f"busy{i}", 1, max_output_tokens=70)) for i in range(2)]
        waiting = bench.submit(turn("t", 40, conversation=2))
        await settle()
        bench.clock.now_s = 2.0
        for placement in busy:
            await bench.end(placement)
        await settle()
        assert not waiting.done()
        bench.clock.now_s = 7.0
        await bench.end(big[0])
        placement = await waiting
        assert (placement.waited.queue, placement.waited.buffer_wait) == (2.0, 5.0)
        assert placement.waited.total == 7.0
        await bench.end(placement)
        await bench.end(big[1])

    on_a_bench(play, load_limit_tokens=40)


def test_an_instant_is_charged_to_one_phase() -> None:
    async def play(bench: Bench) -> None:
        big = [await bench.place(turn(f"big{i}", 40, conversation=i + 1)) for i in range(2)]
        waiting = bench.submit(turn("t", 40))
        await settle()
        # It lacks slots from 0 on; from 1 to 4 somebody makes a block of its prompt.
        bench.clock.now_s = 1.0
        await bench.scheduler.expect(keys_of(0, 4), WEIGHTS.weights_id)
        await bench.scheduler.resume()
        bench.clock.now_s = 4.0
        await bench.store(keys_of(0, 4))
        bench.clock.now_s = 6.0
        await bench.end(big[0])
        placement = await waiting
        assert placement.waited.persist_wait == 3.0
        assert placement.waited.buffer_wait == 2.0
        assert placement.waited.total == 6.0
        await bench.end(placement)
        await bench.end(big[1])

    on_a_bench(play)


# Weights ----------------------------------------------------------------------------------------


def test_a_weight_update_refuses_who_waits_and_forgets_the_old_blocks() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        await bench.scheduler.pause(5)
        waiting = bench.submit(turn("t", 14))
        await settle()
        await bench.scheduler.set_weights(NEXT_WEIGHTS)
        await raises(RequestRefused, "t names weights version 0", waiting)
        await bench.scheduler.resume()
        placement = await bench.place(turn("n", 14, weights=NEXT_WEIGHTS))
        assert (placement.hit_tokens, placement.weights_id) == (0, NEXT_WEIGHTS.weights_id)
        await bench.end(placement)

    on_a_bench(play)


def test_the_same_weights_once_more_refuse_nobody_and_forget_nothing() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        await bench.scheduler.pause(5)
        waiting = bench.submit(turn("t", 14))
        await settle()
        await bench.scheduler.set_weights(WEIGHTS)
        await bench.scheduler.resume()
        placement = await asyncio.wait_for(waiting, 5)
        assert placement.hit_tokens == 12
        await bench.end(placement)

    on_a_bench(play)


def test_what_is_said_of_old_weights_after_the_update_is_dropped() -> None:
    async def play(bench: Bench) -> None:
        await bench.scheduler.set_weights(NEXT_WEIGHTS)
        await bench.scheduler.expect(keys_of(0, 12), WEIGHTS.weights_id)
        await bench.store(keys_of(1, 12))
        assert (await bench.scheduler.figures())["indexed_blocks"] == 0
        await asyncio.wait_for(bench.scheduler.pause(5), 5)  # nothing is pending
        await bench.scheduler.resume()

    on_a_bench(play)


def test_an_update_wakes_who_waited_for_blocks_of_the_old_weights() -> None:
    async def play(bench: Bench) -> None:
        await bench.scheduler.expect(keys_of(0, 8), WEIGHTS.weights_id)
        waiting = bench.submit(turn("t", 10))
        await settle()
        await bench.scheduler.set_weights(NEXT_WEIGHTS)
        await settle()
        assert waiting.done()
        await raises(RequestRefused, "names weights version 0", waiting)

    on_a_bench(play)


def test_a_pause_waits_for_placed_turns_and_pending_blocks_and_places_nobody() -> None:
    async def play(bench: Bench) -> None:
        placement = await bench.place(turn("t", 8))
        await bench.scheduler.expect(keys_of(2, 8), WEIGHTS.weights_id)
        pause = asyncio.create_task(bench.scheduler.pause(5))
        await settle()
        waiting = bench.submit(turn("u", 8, conversation=1))
        await bench.end(placement)
        await settle()
        assert not pause.done()
        await bench.store(keys_of(2, 8))
        await asyncio.wait_for(pause, 5)
        assert not waiting.done()
        await bench.scheduler.resume()
        await bench.end(await waiting)

    on_a_bench(play)


def test_a_pause_past_its_deadline_raises() -> None:
    async def play(bench: Bench) -> None:
        placement = await bench.place(turn("t", 8))
        with pytest.raises(PauseTimeout, match="1 turns still run"):
            await bench.scheduler.pause(0.05)
        await bench.end(placement)

    on_a_bench(play)


# The end of an attempt --------------------------------------------------------------------------


def test_a_finished_turn_keeps_its_decode_slots_until_they_are_released() -> None:
    async def play(bench: Bench) -> None:
        placement = await bench.place(turn("t", 16))
        await bench.scheduler.prefilled(placement.request_id)
        await bench.scheduler.finish(placement.request_id)
        figures = await bench.scheduler.figures()
        assert (figures["placed"], figures["free_slots"]) == (1, LENDABLE - 4)
        await bench.scheduler.release_slots(placement.request_id, placement.decode_slots[:3])
        assert (await bench.scheduler.figures())["placed"] == 1
        await bench.scheduler.release_slots(placement.request_id, placement.decode_slots[3:])

    on_a_bench(play)


def test_a_turn_that_ends_before_the_hand_over_gives_everything_back_at_once() -> None:
    async def play(bench: Bench) -> None:
        placement = await bench.place(turn("t", 16))
        await bench.scheduler.finish(placement.request_id)

    on_a_bench(play)


def test_what_is_said_of_a_turn_that_is_over_changes_nothing() -> None:
    async def play(bench: Bench) -> None:
        placement = await bench.place(turn("t", 16))
        await bench.end(placement)
        other = await bench.place(turn("u", 16))
        before = await bench.scheduler.figures()
        for request_id in (placement.request_id, RequestId("never heard of")):
            await bench.scheduler.prefilled(request_id)
            await bench.scheduler.release_slots(request_id, other.decode_slots)
            await bench.scheduler.finish(request_id)
            await bench.scheduler.finish(request_id, resolved=False)
        assert await bench.scheduler.figures() == before
        await bench.end(other)

    on_a_bench(play)


def test_a_turn_gives_back_no_slots_but_its_own_and_each_once() -> None:
    async def play(bench: Bench) -> None:
        one, other = await bench.place(turn("t", 16)), await bench.place(turn("u", 40, conversation=1))
        await bench.scheduler.release_slots(one.request_id, one.decode_slots[:2])
        before = await bench.scheduler.figures()
        await bench.scheduler.release_slots(one.request_id, one.decode_slots[:2])
        await bench.scheduler.release_slots(one.request_id, bench.reserves[DECODE_0])
        assert await bench.scheduler.figures() == before
        await bench.end(one)
        await bench.end(other)

    on_a_bench(play)


@pytest.mark.parametrize("resolved", [False, True])
@pytest.mark.parametrize("handed_over", [False, True])
def test_slots_somebody_may_still_write_to_are_set_aside_until_he_does_not(
    handed_over: bool, resolved: bool
) -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 8))
        placement = await bench.place(turn("t", 16))
        assert len(placement.prefill_slots) == 2
        if handed_over:
            await bench.scheduler.prefilled(placement.request_id)
        await bench.scheduler.finish(placement.request_id, resolved=False)
        await bench.scheduler.finish(placement.request_id)
        await bench.scheduler.release_slots(placement.request_id, placement.decode_slots)
        if resolved:
            for node_id in 2 * (placement.prefill_node, placement.decode_node):
                bench.scheduler.resolve(placement.request_id, node_id)

    aside = 4 if handed_over else 6
    on_a_bench(play, quarantined=0 if resolved else aside)


def test_lost_blocks_are_counted_once_and_are_hits_no_more() -> None:
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 12)
        await bench.store(keys)
        for _ in range(2):
            await bench.lose([keys[1]])
        assert (await bench.scheduler.figures())["lost_blocks"] == 1
        placement = await bench.place(turn("t", 14))
        assert placement.hit_tokens == 4
        await bench.end(placement)

    on_a_bench(play)


# Late reads -------------------------------------------------------------------------------------


def lost_blocks(placement: Placement, *, late: bool) -> list[LostBlock]:
    """Every block of the placement's hit could not be used."""
    blocks = [(part.side, block) for part in placement.read_plan for block in part.blocks]
    return [
        LostBlock(block.key, slot, side, late)
        for slot, (side, block) in zip(placement.prefill_slots, blocks, strict=True)
    ]


def test_of_a_turn_whose_reads_are_late_only_their_slots_are_set_aside_and_come_back() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        placement = await bench.place(turn("t", 18))
        lost = lost_blocks(placement, late=True)
        await bench.scheduler.hit_lost(placement.request_id, lost[1:])
        figures = await bench.scheduler.figures()
        assert (figures["quarantined_slots"], figures["placed"], figures["lost_blocks"]) == (2, 0, 2)
        await bench.scheduler.settled(PREFILL, [lost[1].slot])
        assert (await bench.scheduler.figures())["quarantined_slots"] == 1
        await bench.scheduler.settled(PREFILL, [lost[1].slot, lost[2].slot])

    on_a_bench(play)


def test_a_read_that_settles_before_it_is_said_to_be_late_sets_no_slot_aside() -> None:
    # The node's message may overtake the prefill engine's.
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        placement = await bench.place(turn("t", 18))
        lost = lost_blocks(placement, late=True)
        await bench.scheduler.settled(PREFILL, [lost[0].slot])
        await bench.scheduler.hit_lost(placement.request_id, lost)
        assert (await bench.scheduler.figures())["quarantined_slots"] == 2

    on_a_bench(play, quarantined=2)


def test_a_settled_read_frees_no_slot_whose_engine_did_not_answer() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        placement = await bench.place(turn("t", 18))
        await bench.scheduler.finish(placement.request_id, resolved=False)
        await bench.scheduler.settled(PREFILL, placement.prefill_slots)
        other = await bench.place(turn("u", 18))
        await bench.scheduler.settled(PREFILL, placement.prefill_slots)
        await bench.end(other)

    on_a_bench(play, quarantined=8)


def test_slots_that_come_back_let_the_next_turn_in() -> None:
    async def play(bench: Bench) -> None:
        for conversation in (0, 1):
            await bench.store(keys_of(conversation, 28))
        first = await bench.place(turn("first", 30))
        await bench.scheduler.hit_lost(first.request_id, lost_blocks(first, late=True))
        waiting = bench.submit(turn("second", 30, conversation=1))
        await settle()
        assert not waiting.done()
        await bench.scheduler.settled(PREFILL, first.prefill_slots)
        await bench.end(await waiting)

    on_a_bench(play)


# Blocks kept in DRAM ----------------------------------------------------------------------------


def sides_of(placement: Placement) -> list[tuple[ReadSide, int]]:
    return [(part.side, len(part.blocks)) for part in placement.read_plan]


def test_blocks_that_a_turn_has_read_are_kept_for_the_next_as_far_as_there_is_room() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 28))
        first = await bench.place(turn("first", 30))
        assert sides_of(first) == [(ReadSide.PREFILL, 7)]
        await bench.end(first)
        assert (await bench.scheduler.figures())["dram_slots"] == 4
        second = await bench.place(turn("second", 30))
        # The start of the context is what stays.
        assert sides_of(second) == [(ReadSide.DRAM, 4), (ReadSide.PREFILL, 3)]
        assert second.prefill_slots[:4] == first.prefill_slots[:4]
        assert second.hit_tokens == 28
        await bench.end(second)

    on_a_bench(play, dram_slots=4)


def test_two_turns_share_a_block_in_dram_and_neither_takes_it_from_the_other() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 16))
        await bench.end(await bench.place(turn("first", 18)))
        pair = [await bench.place(turn(f"t{i}", 18)) for i in range(2)]
        assert pair[0].prefill_slots == pair[1].prefill_slots
        await bench.end(pair[0])
        await bench.store(keys_of(1, 28))
        other = await bench.place(turn("other", 30, conversation=1))
        assert not set(other.prefill_slots) & set(pair[1].prefill_slots)
        await bench.end(other)
        await bench.end(pair[1])

    on_a_bench(play, dram_slots=4)


def test_a_prompt_that_needs_room_gets_it_from_what_is_kept() -> None:
    async def play(bench: Bench) -> None:
        for conversation in (0, 1):
            await bench.store(keys_of(conversation, 40))
        await bench.end(await bench.place(turn("first", 25)))
        assert (await bench.scheduler.figures())["dram_slots"] == 6
        other = await bench.place(turn("other", 41, conversation=1))  # 10 of 12 prefill slots
        assert (await bench.scheduler.figures())["dram_slots"] == 2
        await bench.end(other)

    on_a_bench(play, dram_slots=6)


def test_a_block_that_is_not_what_was_kept_is_read_from_the_store_next_time() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 16))
        await bench.end(await bench.place(turn("first", 18)))
        second = await bench.place(turn("second", 18))
        await bench.scheduler.hit_lost(second.request_id, lost_blocks(second, late=False)[1:2])
        assert (await bench.scheduler.figures())["lost_blocks"] == 0
        third = await bench.place(turn("third", 18))
        assert sides_of(third) == [(ReadSide.DRAM, 1), (ReadSide.PREFILL, 1), (ReadSide.DRAM, 2)]
        await bench.end(third)

    on_a_bench(play, dram_slots=4)


def test_a_kept_slot_whose_engine_did_not_answer_is_set_aside_when_its_last_user_is_done() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 8))
        await bench.end(await bench.place(turn("first", 10)))
        broken, well = [await bench.place(turn(name, 10)) for name in ("broken", "well")]
        await bench.scheduler.finish(broken.request_id, resolved=False)
        assert (await bench.scheduler.figures())["quarantined_slots"] == 3  # its decode slots
        await bench.end(well)
        assert (await bench.scheduler.figures())["quarantined_slots"] == 5

    on_a_bench(play, dram_slots=4, quarantined=5)


def test_new_weights_empty_what_is_kept() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 16))
        await bench.end(await bench.place(turn("first", 18)))
        await bench.scheduler.set_weights(NEXT_WEIGHTS)
        assert (await bench.scheduler.figures())["dram_slots"] == 0

    on_a_bench(play, dram_slots=4)


def test_blocks_of_old_weights_are_not_kept_by_a_turn_that_outlives_them() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 32))
        await bench.end(await bench.place(turn("first", 10)))
        placement = await bench.place(turn("second", 18))
        assert sides_of(placement) == [(ReadSide.DRAM, 2), (ReadSide.PREFILL, 2)]
        await bench.scheduler.set_weights(NEXT_WEIGHTS)
        assert (await bench.scheduler.figures())["dram_slots"] == 2, "it uses them still"
        await bench.end(placement)
        assert (await bench.scheduler.figures())["dram_slots"] == 0

    on_a_bench(play, dram_slots=4)


def test_a_turn_that_fails_before_its_hand_over_leaves_nothing_in_dram() -> None:
    # Nobody has said that what it read is right.
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 16))
        placement = await bench.place(turn("first", 18))
        await bench.scheduler.finish(placement.request_id)
        assert (await bench.scheduler.figures())["dram_slots"] == 0

    on_a_bench(play, dram_slots=4)


@pytest.mark.parametrize(
    ("token_s", "snic_bytes_per_s", "is_set", "hit_tokens"),
    [
        (1e-9, 1e6, True, 0),
        (1.0, 1e6, True, 12),
        (1e-9, 1e6, False, 12),
        (1e-9, None, True, 12),
        (None, 1e6, True, 12),
    ],
)
def test_a_hit_is_loaded_only_where_that_is_known_to_be_faster_than_computing_it(
    token_s: float | None, snic_bytes_per_s: float | None, is_set: bool, hit_tokens: int
) -> None:
    forward = None if token_s is None else (0.0, token_s, 0.0, 0.0)

    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        placement = await bench.place(turn("t", 14))
        assert placement.hit_tokens == hit_tokens
        assert len(placement.prefill_slots) == hit_tokens // 4
        await bench.end(placement)

    speeds = ClusterSpeeds(snic_bytes_per_s, forward)
    on_a_bench(play, speeds=speeds, load_only_if_faster=is_set)


def test_what_an_engine_has_told_of_its_forwards_decides_what_is_loaded() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        first = await bench.place(turn("first", 14))
        assert first.hit_tokens == 12, "nobody knows how long forwards take"
        await bench.scheduler.prefilled(first.request_id, (), (0.0, 1e-9, 0.0, 0.0))
        await bench.end(first)
        second = await bench.place(turn("second", 14))
        assert second.hit_tokens == 0
        await bench.end(second)

    on_a_bench(play, speeds=ClusterSpeeds(1e6, None), load_only_if_faster=True)


# Reads on the decode side -----------------------------------------------------------------------


def test_blocks_read_on_the_decode_side_take_no_prefill_slots() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 28))
        placement = await bench.place(turn("first", 30))
        assert sides_of(placement) == [(ReadSide.PREFILL, 4), (ReadSide.DECODE, 3)]
        assert (len(placement.prefill_slots), len(placement.decode_slots)) == (4, 8)
        slots = [slot for _, slot, _ in placement.hit_blocks()]
        assert slots == [*placement.prefill_slots, *placement.decode_slots[4:7]]
        await bench.end(placement)

    on_a_bench(play, read_plan="split")


def test_a_late_read_on_the_decode_side_sets_that_nodes_slot_aside_until_it_settles() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 28))
        placement = await bench.place(turn("first", 30))
        side, slot, block = list(placement.hit_blocks())[5]
        assert side is ReadSide.DECODE
        lost = [LostBlock(block.key, slot, side, late=True)]
        await bench.scheduler.settled(PREFILL, [slot])  # another node's slot of that number
        await bench.scheduler.hit_lost(placement.request_id, lost)
        assert (await bench.scheduler.figures())["quarantined_slots"] == 1
        assert (await bench.scheduler.figures())["lost_blocks"] == 1
        await bench.scheduler.settled(PREFILL, [slot])
        assert (await bench.scheduler.figures())["quarantined_slots"] == 1
        await bench.scheduler.settled(placement.decode_node, [slot])

    on_a_bench(play, read_plan="split")


@pytest.mark.parametrize("read_plan", ["dual", "split"])
def test_a_turn_that_lost_late_blocks_is_read_on_the_other_side_until_they_settle(
    read_plan: ReadPlanName,
) -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        await bench.store(keys_of(1, 12))
        other = await bench.place(turn("other", 14, conversation=1))  # dual: on the prefill side
        first = await bench.place(turn("first", 14))
        await bench.end(other)
        late = [
            LostBlock(block.key, slot, side, late=True)
            for side, slot, block in first.hit_blocks()
            if side is ReadSide.DECODE
        ]
        await bench.scheduler.hit_lost(first.request_id, late)
        await bench.store(keys_of(0, 12))
        again = await bench.place(turn("again", 5))
        assert sides_of(again) == [(ReadSide.PREFILL, 1)]
        await bench.scheduler.settled(first.decode_node, [block.slot for block in late])
        after = await bench.place(turn("after", 5))
        assert sides_of(after) == [(ReadSide.DECODE, 1)]
        await bench.end(again)
        await bench.end(after)

    on_a_bench(play, read_plan=read_plan)


def test_a_read_on_the_decode_side_that_settles_before_it_is_called_late_sets_nothing_aside() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 28))
        placement = await bench.place(turn("first", 30))
        side, slot, block = list(placement.hit_blocks())[5]
        await bench.scheduler.settled(placement.decode_node, [slot])
        await bench.scheduler.hit_lost(placement.request_id, [LostBlock(block.key, slot, side, late=True)])

    on_a_bench(play, read_plan="split")


def test_only_what_was_read_on_the_prefill_side_is_kept_in_its_memory() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 28))
        await bench.end(await bench.place(turn("first", 30)))
        assert (await bench.scheduler.figures())["dram_slots"] == 4
        second = await bench.place(turn("second", 30))
        assert sides_of(second) == [(ReadSide.DRAM, 4), (ReadSide.PREFILL, 2), (ReadSide.DECODE, 1)]
        await bench.end(second)

    on_a_bench(play, read_plan="split", dram_slots=7)


def test_dual_reads_on_the_other_side_until_it_hears_that_the_first_has_read() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 12))
        first = await bench.place(turn("first", 14))
        second = await bench.place(turn("second", 14))
        assert [sides_of(p) for p in (first, second)] == [[(ReadSide.PREFILL, 3)], [(ReadSide.DECODE, 3)]]
        await bench.scheduler.report_reads(ReadReport(PREFILL, 12, 0, 0.0, ()))
        third = await bench.place(turn("third", 14))
        assert sides_of(third) == [(ReadSide.PREFILL, 3)]
        for placement in (first, second, third):
            await bench.end(placement)

    on_a_bench(play, read_plan="dual")


# Engines that do not answer ---------------------------------------------------------------------


def test_an_absent_engine_gets_no_turns_until_it_is_back() -> None:
    async def play(bench: Bench) -> None:
        first = await bench.place(turn("first", 14))
        absent = frozenset((str(first.decode_node),))
        await bench.scheduler.set_absent(absent)
        assert await bench.scheduler.absent(0, 5.0) == (1, absent)
        for number in range(3):
            placement = await bench.place(turn(f"t{number}", 10, conversation=number + 1))
            assert placement.decode_node != first.decode_node
            await bench.end(placement)
        await bench.end(first)
        await bench.scheduler.set_absent(frozenset())
        used = {(await bench.place(turn(f"u{n}", 10, conversation=n + 5))) for n in range(2)}
        assert {placement.decode_node for placement in used} == {DECODE_0, DECODE_1}
        for placement in used:
            await bench.end(placement)

    on_a_bench(play)


def test_nobody_waits_for_blocks_of_an_absent_engine_nor_a_pause_for_its_turns() -> None:
    async def play(bench: Bench) -> None:
        keys = keys_of(0, 8)
        placement = await bench.place(turn("first", 14))
        await bench.scheduler.prefilled(placement.request_id)
        await bench.scheduler.expect(keys[3:5], WEIGHTS.weights_id, placement.request_id)
        await bench.scheduler.finish(placement.request_id)
        waiting = bench.submit(turn("next", 22))
        await settle()
        assert not waiting.done()
        await bench.scheduler.set_absent(frozenset((str(placement.decode_engine),)))
        again = await waiting
        assert again.hit_tokens == 0
        await bench.end(again)
        await bench.scheduler.pause(5.0)
        await bench.scheduler.resume()
        # It is back, and gives back what it had.
        await bench.scheduler.set_absent(frozenset())
        await bench.scheduler.release_slots(placement.request_id, placement.decode_slots)

    on_a_bench(play)


def test_only_unsafe_nodes_keep_the_slots_of_a_turn_that_broke() -> None:
    async def play(bench: Bench) -> None:
        placement = await bench.place(turn("t", 14))
        safe = frozenset((placement.prefill_node,))
        await bench.scheduler.finish(placement.request_id, resolved=False, safe_nodes=safe)

    on_a_bench(play, quarantined=4)

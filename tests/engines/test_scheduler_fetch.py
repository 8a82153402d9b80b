"""When engines fetch, in which order turns get them, and who goes on while others wait for slots."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from engines.types import ClusterSpeeds, EngineId, EngineInfo, EngineRole, NodeId, RequestId
from tests.engines.scheduler_bench import (
    DECODE_0,
    DECODE_1,
    LAYOUT,
    PREFILL,
    PREFILL_1,
    Bench,
    add_prefill_node,
    keys_of,
    on_a_bench,
    open_bench,
    settle,
    turn,
)


def on_two_prefill_nodes(play: Callable[[Bench], Awaitable[None]], **settings: object) -> None:
    """With prefill-1 beside the bench's nodes; every node's engines are a group of their own."""

    async def run() -> None:
        bench = await open_bench(group_nodes=1, **settings)
        await add_prefill_node(bench)
        await play(bench)
        await settle()
        bench.scheduler.check()
        figures = await bench.scheduler.figures()
        assert (figures["placed"], figures["queue_length"], figures["slot_queue_length"]) == (0, 0, 0)

    asyncio.run(run())


def test_turns_that_arrive_within_a_fetch_period_are_placed_together() -> None:
    async def play(bench: Bench) -> None:
        first = bench.submit(turn("first", 4))
        await settle()
        assert first.done(), "nobody has fetched before"
        later = [bench.submit(turn(f"t{n}", 4)) for n in range(3)]
        await settle()
        assert not any(task.done() for task in later)
        await asyncio.wait(later, timeout=5)
        for task in (first, *later):
            await bench.end(task.result())

    on_a_bench(play, fetch_period_s=0.02)


def test_a_burst_beyond_one_fetch_is_taken_in_several() -> None:
    async def play(bench: Bench) -> None:
        tasks = [bench.submit(turn(f"t{n}", 1, max_output_tokens=1)) for n in range(20)]
        await asyncio.wait(tasks, timeout=5)
        for task in tasks:
            await bench.end(task.result())

    on_a_bench(play, fetch_period_s=0.001, fetch_max_requests=3)


def test_a_pause_places_nobody_though_a_fetch_was_due() -> None:
    async def play(bench: Bench) -> None:
        first = await bench.place(turn("first", 4))
        later = bench.submit(turn("later", 4))
        await settle()
        await bench.end(first)
        await bench.scheduler.pause(5)
        await asyncio.sleep(0.02)
        assert not later.done()
        await bench.scheduler.resume()
        await bench.end(await asyncio.wait_for(later, 5))

    on_a_bench(play, fetch_period_s=0.01)


def test_a_turn_that_waits_for_slots_does_not_hold_up_turns_on_other_nodes() -> None:
    async def play(bench: Bench) -> None:
        for number in range(6):
            await bench.store(keys_of(number, 40))
        # Each prefill node lends 12 slots; of 40 hit tokens one fits.
        placed = [await bench.place(turn(f"big{n}", 42, conversation=n)) for n in range(2)]
        assert {p.prefill_node for p in placed} == {PREFILL, PREFILL_1}
        assert {p.decode_node for p in placed} == {DECODE_0, DECODE_1}
        stuck, behind = (bench.submit(turn(f"t{n}", 42, conversation=n)) for n in (2, 3))
        await settle()
        assert (await bench.scheduler.figures())["slot_queue_length"] == 2
        await bench.end(placed[1])
        await settle()
        done = [task for task in (stuck, behind) if task.done()]
        assert len(done) == 1, "the one whose nodes have room"
        assert done[0].result().prefill_node == placed[1].prefill_node
        await bench.end(placed[0])
        for task in (stuck, behind):
            await bench.end(await task)

    on_two_prefill_nodes(play)


def test_a_turn_that_waits_for_slots_of_an_engine_that_goes_gets_another() -> None:
    async def play(bench: Bench) -> None:
        await bench.store(keys_of(0, 40))
        await bench.store(keys_of(1, 40))
        first = await bench.place(turn("first", 42, max_output_tokens=1))
        gone = first.prefill_engine
        waiting = bench.submit(turn("waiting", 42, conversation=1))
        blocked = await bench.place(turn("blocked", 1, conversation=2))
        await settle()
        await bench.scheduler.set_absent(frozenset(("prefill-a", "prefill-b")))
        await bench.scheduler.finish(first.request_id)
        placement = await asyncio.wait_for(waiting, 5)
        assert (gone, placement.prefill_node) == ("prefill-a", PREFILL_1)
        for each in (placement, blocked):
            await bench.end(each)

    on_two_prefill_nodes(play)


def test_without_engines_turns_wait_until_one_comes() -> None:
    async def play(bench: Bench) -> None:
        await bench.scheduler.set_absent(frozenset(("prefill-a", "prefill-b")))
        waiting = bench.submit(turn("t", 4))
        await settle()
        assert not waiting.done()
        await bench.scheduler.register_engine(EngineInfo(EngineId("prefill-d"), PREFILL, EngineRole.PREFILL))
        placement = await waiting
        assert placement.prefill_engine == "prefill-d"
        await bench.end(placement)

    on_a_bench(play)


def test_decode_engines_take_no_more_contexts_than_their_hbm_holds() -> None:
    async def play(bench: Bench) -> None:
        # 160 tokens each.
        placed = [await bench.place(turn(f"t{n}", 4, max_output_tokens=76)) for n in range(4)]
        assert sorted(p.decode_node for p in placed) == [DECODE_0, DECODE_0, DECODE_1, DECODE_1]
        fifth = bench.submit(turn("t4", 4, max_output_tokens=76))
        await settle()
        assert not fifth.done()
        assert (await bench.scheduler.figures())["decode_queue_length"] == 1
        await bench.end(placed[0])
        assert (await fifth).decode_node == placed[0].decode_node
        for placement in (*placed[1:], fifth.result()):
            await bench.end(placement)

    on_a_bench(play)


def test_the_trajectory_with_most_left_goes_first_where_that_is_set() -> None:
    async def play(bench: Bench) -> None:
        await bench.scheduler.pause(5)
        left = {"short": 10, "none": None, "long": 900, "middle": 100}
        tasks = [
            bench.submit(turn(name, 40, conversation=n, remaining_tokens=tokens))
            for n, (name, tokens) in enumerate(left.items())
        ]
        await settle()
        order: list[RequestId] = []
        await bench.scheduler.resume()
        while len(order) < len(tasks):
            await settle()
            for task in tasks:
                if task.done() and task.result().request_id not in order:
                    order.append(task.result().request_id)
                    await bench.end(task.result())
        assert order == ["long", "middle", "short", "none"]

    on_a_bench(play, order="longest_remaining", load_limit_tokens=0, fetch_max_requests=1)


def test_round_robin_takes_engines_in_turn_whatever_their_load() -> None:
    async def play(bench: Bench) -> None:
        placed = [await bench.place(turn(f"t{n}", 12 if n == 0 else 1)) for n in range(4)]
        assert [p.prefill_engine for p in placed] == ["prefill-a", "prefill-b"] * 2
        assert [p.decode_node for p in placed] == [DECODE_0, DECODE_1] * 2
        for placement in placed:
            await bench.end(placement)

    on_a_bench(play, placement="round_robin", load_limit_tokens=0)


def test_a_turn_gives_its_engines_back_while_it_waits_for_a_block() -> None:
    async def play(bench: Bench) -> None:
        # Samples of one prompt arrive together: the second learns only then that its prompt is being made.
        await bench.scheduler.pause(5)
        group = [bench.submit(turn(f"sample{n}", 14)) for n in range(2)]
        await settle()
        await bench.scheduler.resume()
        await settle()
        assert [task.done() for task in group] == [True, False]
        assert (await bench.scheduler.figures())["slot_queue_length"] == 0
        bench.scheduler.check()
        await bench.end(group[0].result())
        placement = await group[1]
        assert placement.hit_tokens == 12
        await bench.end(placement)

    on_a_bench(play)


@pytest.mark.parametrize(("time_scale", "node"), [(1.0, PREFILL), (2.0, PREFILL_1)])
def test_a_long_read_queue_is_one_of_so_many_seconds_of_the_profiled_device(
    time_scale: float, node: NodeId
) -> None:
    # The storage NIC carries 50 tokens in a second here, and 40 wait: that is more than 1 s of a device
    # that is twice as slow, so that a node with a shorter queue is preferred.
    async def run() -> None:
        token_bytes = LAYOUT.full_block_bytes / LAYOUT.block_tokens
        speeds = ClusterSpeeds(50 * token_bytes, time_scale=time_scale)
        bench = await open_bench(speeds=speeds, read_queue_limit_s=1.0)
        await bench.scheduler.register_node(PREFILL_1, 12, LAYOUT)
        engine = EngineInfo(EngineId("prefill-c"), PREFILL_1, EngineRole.PREFILL)
        await bench.scheduler.register_engine(engine)
        await bench.store(keys_of(0, 40))
        reading = await bench.place(turn("reading", 42))
        assert (reading.prefill_engine, reading.hit_tokens) == ("prefill-a", 40)
        placement = await bench.place(turn("next", 4, conversation=1))
        assert placement.prefill_node == node
        for each in (reading, placement):
            await bench.end(each)

    asyncio.run(run())

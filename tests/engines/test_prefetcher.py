"""Reading ahead for agents that wait: when it happens, what it leaves to turns, and what ends it.

The scheduler is the real one; the prefill node is played by the test, which answers when it likes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from engines.errors import EngineFailed
from engines.read_messages import BlockLoad
from engines.types import ReadSide, RequestId
from kvstore.keys import BlockKey
from kvstore.store import BlockReadResult, ReadStatus
from tests.engines.scheduler_bench import (
    NEXT_WEIGHTS,
    PREFILL,
    WEIGHTS,
    Bench,
    keys_of,
    on_a_bench,
    settle,
    turn,
)

OK, LATE = BlockReadResult(ReadStatus.OK), BlockReadResult(ReadStatus.TIMED_OUT)
AGENT = RequestId("agent/0")


@dataclass
class PlayedNode:
    """Answers the reads it was asked for when the test says so."""

    asked: list[list[BlockLoad]] = field(default_factory=list)
    answers: list[asyncio.Future[list[BlockReadResult | None]]] = field(default_factory=list)

    async def read_ahead(
        self, loads: Sequence[BlockLoad], deadline_s: float
    ) -> tuple[BlockReadResult | None, ...]:
        self.asked.append(list(loads))
        self.answers.append(asyncio.get_running_loop().create_future())
        return tuple(await self.answers[-1])

    async def answer(self, *results: BlockReadResult | None) -> None:
        self.answers[-1].set_result(list(results or [OK] * len(self.asked[-1])))
        await settle()

    async def answer_all(self) -> None:
        end_s = time.monotonic() + 5
        while not self.answers[-1].done():
            assert time.monotonic() < end_s
            await self.answer()

    @property
    def blocks(self) -> list[list[int]]:
        return [[load.block for load in loads] for loads in self.asked]


def on_a_waiting_bench(
    play: Callable[[Bench, PlayedNode], Awaitable[None]], *, quarantined: int = 0, dram_slots: int = 6
) -> None:
    """A bench with one played node, and a stored context of 16 tokens, that is 4 blocks."""

    async def run(bench: Bench) -> None:
        node = PlayedNode()
        await bench.scheduler.connect_nodes({PREFILL: node})  # type: ignore[dict-item]
        await bench.store(keys_of(0, 16))
        await play(bench, node)

    on_a_bench(run, prefetch=True, prefetch_blocks=2, dram_slots=dram_slots, quarantined=quarantined)


async def wait(bench: Bench, keys: tuple[BlockKey, ...], name: RequestId = AGENT) -> None:
    await bench.scheduler.begin_wait(name, keys, WEIGHTS.version)
    await settle()


async def go_on(bench: Bench, name: RequestId = AGENT) -> None:
    await bench.scheduler.end_wait(name)
    await settle()


async def sides(bench: Bench, prompt_tokens: int) -> list[ReadSide]:
    placement = await bench.place(turn("next", prompt_tokens))
    found = [part.side for part in placement.read_plan for _ in part.blocks]
    await bench.end(placement)
    return found


def test_a_context_is_read_a_few_blocks_at_a_time_and_its_turn_finds_it_in_memory() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        assert node.blocks == [[0, 1]]
        await node.answer()
        assert node.blocks == [[0, 1], [2, 3]]
        await node.answer()
        await go_on(bench)
        assert len(node.asked) == 2
        assert await sides(bench, 20) == [ReadSide.DRAM] * 4

    on_a_waiting_bench(play)


def test_what_was_not_read_when_the_turn_comes_is_planned_as_usual() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        await node.answer()
        await go_on(bench)
        assert await sides(bench, 20) == [ReadSide.DRAM] * 2 + [ReadSide.PREFILL] * 2
        assert len(node.asked) == 2
        await node.answer()
        assert len(node.asked) == 2

    on_a_waiting_bench(play)


def test_nothing_is_read_ahead_while_the_node_reads_for_turns() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await bench.store(keys_of(1, 8))
        placement = await bench.place(turn("other", 10, conversation=1))
        await wait(bench, keys_of(0, 16))
        assert not node.asked
        await bench.end(placement)
        await settle()
        assert node.blocks == [[0, 1]]
        await node.answer_all()
        await go_on(bench)

    on_a_waiting_bench(play)


def test_blocks_that_a_busy_node_did_not_begin_are_asked_for_again_after_its_report() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        await node.answer(OK, None)
        assert len(node.asked) == 1
        await bench.report(PREFILL)
        await settle()
        assert node.blocks == [[0, 1], [1, 2]]
        await node.answer_all()
        await go_on(bench)

    on_a_waiting_bench(play)


def test_prompts_take_the_slots_of_what_was_read_ahead() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        await node.answer_all()
        assert (await bench.scheduler.figures())["dram_slots"] == 4
        await bench.store(keys_of(1, 40))
        placement = await bench.place(turn("large", 41, conversation=1))
        assert len(placement.prefill_slots) == 10
        assert (await bench.scheduler.figures())["dram_slots"] == 2
        await bench.end(placement)
        await go_on(bench)

    on_a_waiting_bench(play)


def test_no_slot_is_taken_that_a_turn_waits_for() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        for conversation in (1, 2):
            await bench.store(keys_of(conversation, 28))
        first = await bench.place(turn("first", 30, conversation=1))
        second = bench.submit(turn("second", 30, conversation=2))
        await settle()
        await bench.read(PREFILL, 7, 1e6)
        await wait(bench, keys_of(0, 16))
        assert not node.asked
        await bench.end(first)
        await bench.end(await second)
        await settle()
        await node.answer_all()
        await go_on(bench)

    on_a_waiting_bench(play)


def test_blocks_of_an_agent_that_waits_are_not_replaced_by_another_ones() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await bench.store(keys_of(1, 16))
        await wait(bench, keys_of(0, 16))
        await node.answer_all()
        await wait(bench, keys_of(1, 16), RequestId("other/0"))
        assert [load.key for load in node.asked[-1]] == list(keys_of(1, 8))
        await node.answer_all()
        assert (await bench.scheduler.figures())["dram_slots"] == 6
        await go_on(bench)
        await go_on(bench, RequestId("other/0"))
        assert await sides(bench, 20) == [ReadSide.DRAM] * 4

    on_a_waiting_bench(play)


def test_blocks_that_are_stored_while_the_agent_waits_are_read_too() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 24))
        await node.answer_all()
        assert node.blocks == [[0, 1], [2, 3]]
        await bench.store(keys_of(0, 24)[4:])
        await settle()
        assert node.blocks[2:] == [[4, 5]]
        await node.answer_all()
        await go_on(bench)

    on_a_waiting_bench(play)


def test_a_pause_ends_it_once_the_node_has_answered() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        pausing = asyncio.ensure_future(bench.scheduler.pause(5))
        await settle()
        assert not pausing.done()
        await node.answer()
        await pausing
        assert len(node.asked) == 1
        await wait(bench, keys_of(0, 16), RequestId("other/0"))
        assert len(node.asked) == 1
        await bench.scheduler.resume()

    on_a_waiting_bench(play)


def test_what_arrives_after_new_weights_is_not_kept() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        await bench.scheduler.set_weights(NEXT_WEIGHTS)
        await node.answer()
        assert (await bench.scheduler.figures())["dram_slots"] == 0
        await wait(bench, keys_of(0, 16))
        assert len(node.asked) == 1

    on_a_waiting_bench(play)


@pytest.mark.parametrize("is_settled_first", [False, True])
def test_the_slot_of_a_late_read_comes_back_when_it_has_settled(is_settled_first: bool) -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 8))
        slot = node.asked[0][0].slot
        if is_settled_first:
            await bench.scheduler.settled(PREFILL, [slot])
        await node.answer(LATE, OK)
        assert (await bench.scheduler.figures())["quarantined_slots"] == (not is_settled_first)
        await bench.scheduler.settled(PREFILL, [slot])
        await go_on(bench)

    on_a_waiting_bench(play)


def test_slots_of_a_node_that_does_not_answer_stay_aside() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        node.answers[-1].set_exception(EngineFailed("gone"))
        await settle()
        assert len(node.asked) == 1
        await go_on(bench)

    on_a_waiting_bench(play, quarantined=2)


def test_a_pause_does_not_wait_for_a_node_that_is_found_absent() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        await bench.scheduler.set_absent(frozenset([PREFILL]))
        await bench.scheduler.pause(5)
        await bench.scheduler.set_absent(frozenset())
        await bench.scheduler.resume()

    on_a_waiting_bench(play, quarantined=2)


def test_without_room_to_keep_blocks_nothing_is_read_ahead() -> None:
    async def play(bench: Bench, node: PlayedNode) -> None:
        await wait(bench, keys_of(0, 16))
        assert not node.asked

    on_a_waiting_bench(play, dram_slots=0)

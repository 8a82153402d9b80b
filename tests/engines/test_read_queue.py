"""A node's read queue: first come, first served; what has begun stays; every block has one fate."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.block_spans import blocks_of, spans_of
from engines.read_messages import BlockLoad, BlockSpan, LoadId, MoveOrder, UnreadReads
from engines.read_queue import Chunk, ReadQueue, carried_out
from engines.types import ReadSide, RequestId, SlotId
from kvstore.keys import BlockKey
from kvstore.store import BlockLocation

RECORD = 100
PREFILL, DECODE = ReadSide.PREFILL, ReadSide.DECODE
A, B = RequestId("a"), RequestId("b")


def loads(blocks: Iterable[int], nbytes: int = RECORD) -> list[BlockLoad]:
    return [
        BlockLoad(block, SlotId(block), BlockKey(bytes(16)), BlockLocation("s", block * nbytes, nbytes, 0))
        for block in blocks
    ]


def queue_of(*added: tuple[RequestId, ReadSide, Iterable[int]], blocks: int = 2, depth: int = 2) -> ReadQueue:
    """A queue whose chunks are of so many blocks; its loads are named 1, 2, ..."""
    queue = ReadQueue(blocks * RECORD, depth)
    for number, (request_id, side, numbers) in enumerate(added, 1):
        queue.add(LoadId(number), request_id, side, loads(numbers), now_s=0.0)
    return queue


def numbers(chunk: Chunk | None) -> tuple[int, list[int]] | None:
    return None if chunk is None else (chunk.load_id, [load.block for load in chunk.loads])


def order(request_id: RequestId, to_side: ReadSide, *spans: BlockSpan, slots: int = 0) -> MoveOrder:
    return MoveOrder(request_id, to_side, spans, tuple(SlotId(70 + i) for i in range(slots)))


def test_loads_are_read_in_the_order_they_came_in_chunks_that_no_two_loads_share() -> None:
    queue = queue_of((A, PREFILL, range(3)), (B, DECODE, range(5, 8)), depth=9)
    taken = [numbers(queue.take()) for _ in range(5)]
    assert taken == [(1, [0, 1]), (1, [2]), (2, [5, 6]), (2, [7]), None]


def test_no_more_chunks_are_in_flight_than_the_depth() -> None:
    queue = queue_of((A, PREFILL, range(9)))
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    assert queue.take() is None
    queue.end(second, 1.0)
    assert numbers(queue.take()) == (1, [4, 5])


def test_a_block_larger_than_a_chunk_is_read_alone() -> None:
    queue = ReadQueue(RECORD, 1)
    queue.add(LoadId(1), A, PREFILL, loads([0, 1], nbytes=5 * RECORD), 0.0)
    assert numbers(queue.take()) == (1, [0])


@pytest.mark.parametrize(
    ("to_side", "spans", "given_up", "left"),
    [
        (DECODE, [(0, 9)], [2, 3, 4, 5], []),
        (DECODE, [(4, 6)], [4, 5], [(2, 4)]),
        (DECODE, [(3, 4), (5, 6)], [3, 5], [(2, 3), (4, 5)]),
        (DECODE, [(0, 2)], [], [(2, 6)]),  # these have begun
        (PREFILL, [(0, 9)], [], [(2, 6)]),  # it reads for the prefill side itself
    ],
)
def test_what_has_not_begun_is_given_up_and_nothing_else(
    to_side: ReadSide, spans: list[BlockSpan], given_up: list[int], left: list[BlockSpan]
) -> None:
    queue = queue_of((A, PREFILL, range(6)), depth=1)
    queue.take()
    out = queue.give_up(order(A, to_side, *spans), 1.0)
    assert [load.block for one in out for load in one.loads] == given_up
    assert [unread.spans for unread in queue.unread()] == ([tuple(left)] if left else [])
    assert queue.num_finished == len(given_up)
    queue.check()


def test_an_order_of_another_turn_takes_nothing() -> None:
    queue = queue_of((A, PREFILL, range(6)), (B, PREFILL, range(6)))
    (out,) = queue.give_up(order(B, DECODE, (0, 2)), 1.0)
    assert (out.load_id, [load.block for load in out.loads]) == (2, [0, 1])


def test_the_part_of_an_order_that_is_carried_out_keeps_its_slots() -> None:
    asked = order(A, PREFILL, (2, 4), (6, 8), slots=4)
    assert carried_out(asked, loads([3, 7])) == MoveOrder(
        A, PREFILL, ((3, 4), (7, 8)), (SlotId(71), SlotId(73))
    )


def test_a_turn_that_is_dropped_leaves_what_has_begun_on_both_sides() -> None:
    queue = queue_of((A, PREFILL, range(4)), (A, DECODE, range(4, 8)), (B, PREFILL, range(2)), depth=1)
    queue.take()
    out = queue.drop(A, 1.0)
    assert [[load.block for load in one.loads] for one in out] == [[2, 3], [4, 5, 6, 7]]
    assert [unread.request_id for unread in queue.unread()] == [B]


def test_unread_blocks_of_a_turn_and_side_are_told_together_with_what_is_read_before_them() -> None:
    queue = queue_of((A, PREFILL, range(4)), (B, PREFILL, [1]), (A, PREFILL, [9, 8]), depth=1)
    queue.take()
    assert queue.unread() == (
        UnreadReads(A, PREFILL, ((2, 4), (9, 10), (8, 9)), 2 * RECORD),
        UnreadReads(B, PREFILL, ((1, 2),), 4 * RECORD),
    )


def test_time_counts_while_something_is_queued_or_in_flight() -> None:
    queue = ReadQueue(RECORD, 1)
    queue.add(LoadId(1), A, PREFILL, loads([0]), 10.0)
    assert queue.busy_s(11.0) == 1.0
    chunk = queue.take()
    assert chunk is not None
    queue.end(chunk, 13.0)
    assert queue.is_idle
    assert queue.busy_s(99.0) == 3.0
    queue.add(LoadId(2), A, PREFILL, loads([0]), 100.0)
    queue.drop(A, 101.0)
    assert queue.busy_s(200.0) == 4.0


SPAN = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda pair: (min(pair), max(pair)))
ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from([A, B]), st.sampled_from([PREFILL, DECODE]), SPAN),
    st.tuples(st.just("give_up"), st.sampled_from([A, B]), st.sampled_from([PREFILL, DECODE]), SPAN),
    st.tuples(st.just("drop"), st.sampled_from([A, B]), st.just(PREFILL), SPAN),
    st.tuples(st.sampled_from(["take", "take", "end"]), st.just(A), st.just(PREFILL), SPAN),
)


@given(st.lists(ACTIONS, max_size=40), st.integers(1, 3), st.integers(1, 4))
def test_every_block_has_one_fate_what_has_begun_is_read_and_loads_begin_in_order(
    actions: list[tuple[str, RequestId, ReadSide, BlockSpan]], depth: int, chunk_blocks: int
) -> None:
    queue = ReadQueue(chunk_blocks * RECORD, depth)
    queued: set[tuple[int, int]] = set()
    begun: list[tuple[int, int]] = []
    fates: list[tuple[int, int]] = []
    in_flight: list[Chunk] = []
    next_id, now_s = 1, 0.0
    for name, request_id, side, span in actions + [("end", A, PREFILL, (0, 0))] * 200:
        now_s += 1
        if name == "add":
            queue.add(LoadId(next_id), request_id, side, loads(range(*span)), now_s)
            queued |= {(next_id, block) for block in range(*span)}
            next_id += 1
        elif name in ("give_up", "drop"):
            given_up = (
                queue.drop(request_id, now_s)
                if name == "drop"
                else queue.give_up(order(request_id, side, span), now_s)
            )
            out = [(one.load_id, load.block) for one in given_up for load in one.loads]
            assert set(out) <= queued
            queued -= set(out)
            fates += out
        elif name == "end" and in_flight:
            chunk = in_flight.pop(0)
            queue.end(chunk, now_s)
            fates += [(chunk.load_id, load.block) for load in chunk.loads]
        elif (taken := queue.take()) is not None:
            in_flight.append(taken)
            blocks = [(taken.load_id, load.block) for load in taken.loads]
            assert set(blocks) <= queued
            queued -= set(blocks)
            begun += blocks
        queue.check()
        assert queue.num_finished == len(fates)
        unread = sum(len(list(blocks_of(one.spans))) for one in queue.unread())
        assert unread == len(queued)
    assert queue.is_idle
    assert begun == sorted(begun)
    assert len(set(fates)) == len(fates)


@given(st.lists(st.integers(0, 20), unique=True))
def test_spans_name_the_blocks_they_were_made_of(blocks: list[int]) -> None:
    assert list(blocks_of(spans_of(blocks))) == blocks

"""Which plan a turn gets, and what the planner's read queues know."""

from __future__ import annotations

import pytest

from engines.config import ReadPlanName
from engines.read_planner import ReadPlanner
from engines.types import EngineId, NodeId, PhaseSeconds, Placement, ReadRange, ReadSide, RequestId, SlotId
from kvstore.keys import BlockKey, WeightsId
from kvstore.prefix_index import IndexedBlock
from kvstore.store import BlockLocation

BLOCK_TOKENS = 8
PREFILL, DECODE, OTHER = NodeId("prefill-0"), NodeId("decode-0"), NodeId("decode-1")


def hit_of(num_blocks: int) -> tuple[IndexedBlock, ...]:
    return tuple(
        IndexedBlock(BlockKey(i.to_bytes(16, "big")), BlockLocation("segment", i * 4096, 4096, i))
        for i in range(num_blocks)
    )


def planner(name: ReadPlanName) -> ReadPlanner:
    made = ReadPlanner(name)
    for node_id in (PREFILL, DECODE, OTHER):
        made.add_node(node_id, BLOCK_TOKENS)
    return made


def placed(name: str, plan: tuple[ReadRange, ...], decode_node: NodeId = DECODE) -> Placement:
    num_blocks = sum(len(part.blocks) for part in plan)
    num_decode_side = sum(len(part.blocks) for part in plan if part.side is ReadSide.DECODE)
    return Placement(
        request_id=RequestId(name),
        prefill_engine=EngineId("p"),
        prefill_node=PREFILL,
        decode_engine=EngineId("d"),
        decode_node=decode_node,
        read_plan=plan,
        hit_tokens=num_blocks * BLOCK_TOKENS,
        prefill_slots=tuple(map(SlotId, range(num_blocks - num_decode_side))),
        decode_slots=tuple(map(SlotId, range(100, 101 + num_blocks))),
        weights_version=0,
        weights_id=WeightsId("w"),
        waited=PhaseSeconds(),
    )


def begin(made: ReadPlanner, name: str, num_blocks: int, decode: NodeId = DECODE) -> list[tuple[str, int]]:
    """Plan and place a turn; what of its hit comes from where."""
    plan = made.plan(hit_of(num_blocks), PREFILL, decode)
    made.begin(placed(name, plan, decode))
    made.check()
    return [(part.side.value, len(part.blocks)) for part in plan]


def test_dual_reads_where_less_is_left_to_read() -> None:
    made = planner("dual")
    assert begin(made, "a", 3) == [("prefill", 3)]
    assert begin(made, "b", 1) == [("decode", 1)]
    assert begin(made, "c", 1) == [("decode", 1)]
    assert begin(made, "d", 4, OTHER) == [("decode", 4)]
    made.end(RequestId("a"), ReadSide.PREFILL)
    assert begin(made, "e", 1) == [("prefill", 1)]
    assert [made.queue_tokens(n) for n in (PREFILL, DECODE, OTHER)] == [8, 16, 32]


def test_split_gives_the_longer_queue_less() -> None:
    made = planner("split")
    assert begin(made, "a", 4) == [("prefill", 2), ("decode", 2)]
    made.end(RequestId("a"), ReadSide.DECODE)
    assert begin(made, "b", 4) == [("prefill", 1), ("decode", 3)]
    assert begin(made, "c", 1, OTHER) == [("decode", 1)]


def test_alternate_counts_the_turns_that_read_and_no_others() -> None:
    made = planner("alternate")
    assert begin(made, "a", 2) == [("prefill", 2)]
    assert begin(made, "none", 0) == []
    assert made.plan(hit_of(2), PREFILL, DECODE) == made.plan(hit_of(2), PREFILL, DECODE), "nobody was placed"
    assert begin(made, "b", 2) == [("decode", 2)]
    assert begin(made, "c", 2) == [("prefill", 2)]


@pytest.mark.parametrize("name", ["basic", "dual", "split", "alternate"])
def test_blocks_in_memory_are_read_nowhere_and_wait_in_no_queue(name: ReadPlanName) -> None:
    made = planner(name)
    hit = hit_of(3)
    plan = made.plan(hit, PREFILL, DECODE, {block.key for block in hit})
    assert {part.side for part in plan} == {ReadSide.DRAM}
    made.begin(placed("a", plan))
    made.check()
    assert made.queue_tokens(PREFILL) == made.queue_tokens(DECODE) == 0


def test_a_side_that_ends_twice_or_never_began_changes_no_queue() -> None:
    made = planner("split")
    begin(made, "a", 4)
    begin(made, "b", 4)
    for _ in range(2):
        made.end(RequestId("a"), ReadSide.PREFILL)
        made.end(RequestId("a"), *ReadSide)
        made.end(RequestId("nobody"), ReadSide.DECODE)
        made.check()
    assert made.queue_tokens(PREFILL) == made.queue_tokens(DECODE) == 2 * BLOCK_TOKENS
    made.end(RequestId("b"), *ReadSide)
    assert made.queue_tokens(PREFILL) == made.queue_tokens(DECODE) == 0

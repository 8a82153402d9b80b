"""Where a context is read ahead, and how far the node that keeps it pulls its next turn."""

from __future__ import annotations

import pytest

from engines.scheduling.prefetch import NodeMemory, choose_node, pulls
from engines.types import NodeId
from tests.engines.scheduling.turns import LOAD_LIMIT, cluster, prefill_group, turn


def memory(name: str, num_kept: int, num_room: int, queue_tokens: int = 0) -> NodeMemory:
    return NodeMemory(NodeId(name), num_kept, num_room, queue_tokens)


@pytest.mark.parametrize(
    ("memories", "chosen"),
    [
        ((), None),
        ((memory("a", 5, 0),), None),
        ((memory("a", 0, 10), memory("b", 3, 10)), "b"),
        ((memory("a", 3, 4), memory("b", 0, 10)), "b"),
        ((memory("a", 0, 10, 50), memory("b", 0, 20, 40)), "b"),
        ((memory("b", 0, 10), memory("a", 0, 10)), "a"),
    ],
)
def test_a_context_goes_where_most_of_it_will_lie_then_where_most_of_it_lies(memories, chosen):
    found = choose_node(memories, num_blocks=8)
    assert (None if found is None else found.node_id) == chosen


@pytest.mark.parametrize(
    ("pull", "kept", "load", "least", "is_pulled"),
    [
        (0.5, 100, 0, 0, True),
        (0.5, 100, 50, 0, True),
        (0.5, 100, 51, 0, False),
        (0.5, 100, 151, 101, True),
        (0.0, 100, 1, 0, False),
    ],
)
def test_the_pull_is_worth_a_part_of_what_need_not_be_read(pull, kept, load, least, is_pulled):
    assert pulls(pull=pull, kept_tokens=kept, load_tokens=load, least_tokens=least) is is_pulled


@pytest.mark.parametrize(
    ("load", "kept", "chosen"),
    [(0, 0, "p0-0"), (20, 40, "p1-0"), (21, 40, "p0-0"), (LOAD_LIMIT + 1, 1000, "p0-0")],
    ids=["nothing kept", "within the pull", "beyond the pull", "overloaded"],
)
def test_a_turn_goes_to_the_node_that_keeps_its_context_if_its_load_allows(load, kept, chosen):
    placement = cluster(prefill=2, prefetch_pull=0.5)
    prefill_group(placement).give(1, load)
    one = turn("a", memory_node=NodeId("p1") if kept else None, memory_tokens=kept)
    placement.submit(one)
    assert [pair.prefill.engine_id for pair in placement.place(0.0)] == [chosen]

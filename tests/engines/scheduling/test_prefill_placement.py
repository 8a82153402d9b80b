from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.cluster_placement import ClusterPlacement
from engines.types import EngineId, NodeId, RequestId
from tests.engines.scheduling.turns import (
    LOAD_LIMIT,
    READ_LIMIT,
    cluster,
    decode_group,
    place,
    prefill_group,
    turn,
)


def bench(prefill: int = 2, **changes: Any) -> ClusterPlacement:
    return cluster(prefill, rendezvous="independent", **changes)


def fetched(placement: ClusterPlacement) -> list[tuple[str, str]]:
    """(turn, prefill engine) of one fetch. All turns have decode engines before, so each makes a pair."""
    while placement.num_waiting[1]:
        assert placement.fetch_decode(decode_group(placement)) == []
    pairs = placement.fetch_prefill(prefill_group(placement), 0.0)
    return [(pair.turn.request_id, pair.prefill.engine_id) for pair in pairs]


def with_loads(tokens: list[int], read_queues: list[int]) -> ClusterPlacement:
    placement = bench(len(tokens))
    group = prefill_group(placement)
    for row, (load, queued) in enumerate(zip(tokens, read_queues, strict=True)):
        if load:
            group.give(row, load)
        placement.queues.plan({group.node_ids[row]: queued})
    return placement


@pytest.mark.parametrize(
    ("tokens", "read_queues", "chosen"),
    [
        ([0, 0], [0, 0], "p0-0"),
        ([30, 20], [0, 0], "p1-0"),
        ([30, 20], [0, READ_LIMIT], "p1-0"),
        ([30, 20], [0, READ_LIMIT + 1], "p0-0"),
        ([LOAD_LIMIT, 20], [0, READ_LIMIT + 1], "p0-0"),
        ([LOAD_LIMIT + 1, 20], [0, READ_LIMIT + 1], "p1-0"),
        ([30, 20], [READ_LIMIT + 1, READ_LIMIT + 1], "p1-0"),
        ([LOAD_LIMIT + 1, LOAD_LIMIT + 1], [0, 0], None),
    ],
    ids=[
        "tie to the smaller id",
        "fewest tokens",
        "at alpha is preferred",
        "beyond alpha is spare",
        "at beta is open",
        "beyond beta is overloaded, so a spare one",
        "all spare: fewest tokens",
        "all overloaded",
    ],
)
def test_a_turn_goes_to_the_best_category_and_there_to_the_fewest_tokens(
    tokens: list[int], read_queues: list[int], chosen: str | None
) -> None:
    placement = with_loads(tokens, read_queues)
    placement.submit(turn("a"))
    assert fetched(placement) == ([("a", chosen)] if chosen else [])


def test_equal_tokens_go_to_the_engine_with_fewer_requests() -> None:
    placement = bench()
    group = prefill_group(placement)
    group.give(0, 10)
    group.give(0, 10)
    group.give(1, 20)
    placement.submit(turn("a"))
    assert fetched(placement) == [("a", "p1-0")]


def test_a_fetch_counts_its_own_decisions_as_load() -> None:
    placement = bench()
    for name, prompt in (("a", 40), ("b", 10), ("c", 10), ("d", 10), ("e", 10), ("f", 10)):
        placement.submit(turn(name, prompt))
    engines = [engine for _, engine in fetched(placement)]
    assert engines == ["p0-0", "p1-0", "p1-0", "p1-0", "p1-0", "p0-0"]


def test_a_fetch_counts_its_own_decisions_as_reads() -> None:
    placement = with_loads([20, 0], [0, 0])
    for name in "abc":
        placement.submit(turn(name, 15, hit=30))
    # p1 is least loaded until two turns have promised 60 tokens of reads there: beyond alpha it is spare.
    assert fetched(placement) == [("a", "p1-0"), ("b", "p1-0"), ("c", "p0-0")]


def test_a_fetch_stops_when_every_engine_is_overloaded_and_keeps_the_order() -> None:
    placement = bench()
    for number in range(4):
        placement.submit(turn(f"t{number}", LOAD_LIMIT + 1))
    assert [name for name, _ in fetched(placement)] == ["t0", "t1"]
    assert fetched(placement) == []
    placement.prefilled(RequestId("t0"))
    assert fetched(placement) == [("t2", "p0-0")]


def test_a_fetch_takes_no_more_than_it_may() -> None:
    placement = bench(fetch_max_requests=2)
    for number in range(4):
        placement.submit(turn(f"t{number}"))
    assert [name for name, _ in fetched(placement)] == ["t0", "t1"]


def test_an_engine_that_failed_the_turn_comes_last_among_the_open_ones() -> None:
    placement = bench()
    placement.submit(turn("a", failed_engines=frozenset({EngineId("p0-0"), EngineId("gone")})))
    assert fetched(placement) == [("a", "p1-0")]
    only = bench(1)
    only.submit(turn("a", failed_engines=frozenset({EngineId("p0-0")})))
    assert fetched(only) == [("a", "p0-0")]


def test_misses_alone_can_count_as_load() -> None:
    placement = cluster(prefill_load_counts="miss")
    place(placement, turn("a", 40, hit=32))
    assert prefill_group(placement).total_tokens == 8


def test_round_robin_takes_engines_in_turn_whatever_their_load() -> None:
    placement = bench(3, placement="round_robin")
    prefill_group(placement).give(1, 10 * LOAD_LIMIT)
    for number in range(5):
        placement.submit(turn(f"t{number}", LOAD_LIMIT))
    assert [engine for _, engine in fetched(placement)] == ["p0-0", "p1-0", "p2-0", "p0-0", "p1-0"]


def test_all_engines_of_a_node_share_its_read_queue() -> None:
    placement = bench(engines=2)
    placement.queues.plan({NodeId("p0"): READ_LIMIT + 1})
    for number in range(4):
        placement.submit(turn(f"t{number}"))
    assert Counter(engine for _, engine in fetched(placement)) == {"p1-0": 2, "p1-1": 2}


LOADS = st.lists(
    st.tuples(st.integers(0, 2 * LOAD_LIMIT), st.integers(0, 2 * READ_LIMIT)), min_size=1, max_size=8
)


@given(LOADS, st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), max_size=30))
def test_no_turn_goes_past_a_better_engine(
    loads: list[tuple[int, int]], prompts: list[tuple[int, int]]
) -> None:
    placement = with_loads([tokens for tokens, _ in loads], [queued for _, queued in loads])
    tokens = {f"p{number}-0": load for number, (load, _) in enumerate(loads)}
    queued = {f"p{number}-0": queue for number, (_, queue) in enumerate(loads)}
    for number, (prompt, hit) in enumerate(prompts):
        placement.submit(turn(f"t{number:02}", prompt + hit, hit))
    taken = fetched(placement)
    for (name, engine), (prompt, hit) in zip(taken, prompts, strict=False):
        opened = {other for other in tokens if tokens[other] <= LOAD_LIMIT}
        preferred = {other for other in opened if queued[other] <= READ_LIMIT}
        assert engine in (preferred or opened), name
        assert tokens[engine] == min(tokens[other] for other in preferred or opened)
        tokens[engine] += prompt + hit
        queued[engine] += hit
    if len(taken) < len(prompts):
        assert min(tokens.values()) > LOAD_LIMIT

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.placement import EngineLoad, choose_decode, choose_prefill
from engines.types import EngineId, NodeId

LIMIT = 100


def load(name: str, tokens: int, requests: int = 1) -> EngineLoad:
    return EngineLoad(EngineId(name), NodeId(f"node-of-{name}"), requests, tokens)


LOADS = st.lists(
    st.builds(
        EngineLoad,
        engine_id=st.integers(0, 99).map(lambda i: EngineId(f"e{i:02}")),
        node_id=st.just(NodeId("n")),
        num_requests=st.integers(0, 3),
        load_tokens=st.integers(0, 150),
    ),
    max_size=8,
    unique_by=lambda load: load.engine_id,
)
FAILED = st.sets(st.integers(0, 99).map(lambda i: EngineId(f"e{i:02}")), max_size=60)


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([], None),
        ([load("a", 101)], None),
        ([load("a", 100)], "a"),
        ([load("a", 50), load("b", 20)], "b"),
        ([load("a", 101), load("b", 100)], "b"),
        ([load("a", 20, 3), load("b", 20, 2)], "b"),
        ([load("b", 20), load("a", 20)], "a"),
    ],
    ids=["none", "over", "at the limit", "least", "one over", "tokens tie", "all tie"],
)
def test_prefill_goes_to_the_least_loaded_engine_within_the_limit(
    loads: list[EngineLoad], chosen: str | None
) -> None:
    found = choose_prefill(loads, LIMIT)
    assert (found and found.engine_id) == chosen


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([], None),
        ([load("a", 10**9)], "a"),
        ([load("a", 50), load("b", 20)], "b"),
        ([load("b", 20, 1), load("a", 20, 2)], "b"),
        ([load("b", 20), load("a", 20)], "a"),
    ],
    ids=["none", "no limit", "least", "tokens tie", "all tie"],
)
def test_decode_goes_to_the_engine_with_the_fewest_tokens(
    loads: list[EngineLoad], chosen: str | None
) -> None:
    found = choose_decode(loads)
    assert (found and found.engine_id) == chosen


def test_an_engine_that_failed_the_request_is_taken_only_if_there_is_no_other() -> None:
    idle, busy = load("a", 0), load("b", 90)
    failed = {idle.engine_id}
    assert choose_decode([idle, busy], failed) == busy
    assert choose_decode([idle], failed) == idle
    assert choose_prefill([idle, busy], LIMIT, failed) == busy
    assert choose_prefill([idle, load("b", 101)], LIMIT, failed) == idle


@given(LOADS, FAILED, st.randoms(use_true_random=False))
def test_a_choice_depends_on_the_loads_and_not_on_their_order(
    loads: list[EngineLoad], failed: set[EngineId], rng: random.Random
) -> None:
    shuffled = rng.sample(loads, len(loads))
    assert choose_prefill(loads, LIMIT, failed) == choose_prefill(shuffled, LIMIT, failed)
    assert choose_decode(loads, failed) == choose_decode(shuffled, failed)


@given(LOADS)
def test_nobody_has_less_to_do_than_the_chosen_engine(loads: list[EngineLoad]) -> None:
    prefill, decode = choose_prefill(loads, LIMIT), choose_decode(loads)
    within = [load.load_tokens for load in loads if load.load_tokens <= LIMIT]
    assert (prefill and prefill.load_tokens) == min(within, default=None)
    assert (decode and decode.load_tokens) == min((load.load_tokens for load in loads), default=None)

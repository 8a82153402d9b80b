from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.decode_placement import DecodePlacement
from engines.scheduling.engine_group import EngineGroup
from engines.types import EngineId, NodeId
from tests.engines.scheduling.turns import settings, turn


def group_of(*engines: tuple[int, int, int], name: str = "g") -> EngineGroup:
    """Engines of (tokens, requests, free HBM tokens), named g0, g1 ..."""
    group = EngineGroup(name)
    for number, (tokens, requests, free) in enumerate(engines):
        group.add(EngineId(f"{name}{number}"), NodeId("n"), 0, free)
        for index in range(requests):
            group.give(number, tokens // requests + (tokens % requests if index == 0 else 0))
    return group


def fetched(group: EngineGroup, *prompts: int, **changes: object) -> list[str]:
    placement = DecodePlacement(settings(**changes))
    for number, prompt in enumerate(prompts):
        placement.push(turn(f"t{number}", prompt, output_tokens=5))
    placement.deal([group])
    return [choice.engine_id for choice in placement.fetch(group)]


@pytest.mark.parametrize(
    ("engines", "chosen"),
    [
        ([(0, 0, 99), (0, 0, 99)], "g0"),
        # Z = 1.05 x (10 + 40 + 90 + 10) / 3: the first two stay within it, the second has fewer requests.
        ([(10, 3, 99), (40, 1, 99), (90, 1, 99)], "g1"),
        ([(40, 2, 99), (30, 2, 99), (90, 1, 99)], "g1"),
        ([(40, 2, 99), (40, 2, 99), (90, 1, 99)], "g0"),
        ([(10, 3, 99), (40, 1, 14), (90, 1, 99)], "g0"),
        ([(10, 3, 15), (40, 1, 14), (90, 1, 14)], "g0"),
        ([(10, 3, 14), (80, 3, 99), (90, 1, 99)], "g1"),
        ([(10, 3, 14), (40, 1, 14)], None),
        ([], None),
    ],
    ids=[
        "tie to the smaller id",
        "lightly loaded: fewest requests",
        "then fewest tokens",
        "then the smaller id",
        "no room on the lighter",
        "room for one context exactly",
        "none is light: fewest tokens",
        "no room at all",
        "no engine",
    ],
)
def test_a_turn_goes_to_the_best_engine_it_fits(
    engines: list[tuple[int, int, int]], chosen: str | None
) -> None:
    assert fetched(group_of(*engines), 10) == ([chosen] if chosen else [])


def test_the_balance_factor_widens_what_counts_as_light() -> None:
    engines = [(50, 3, 99), (70, 1, 99)]
    # Z = factor x (50 + 70 + 10) / 2
    assert fetched(group_of(*engines), 10) == ["g0"]
    assert fetched(group_of(*engines), 10, decode_balance_factor=1.3) == ["g1"]


def test_hbm_can_be_asked_for_the_prompt_alone() -> None:
    assert fetched(group_of((0, 0, 12)), 10) == []
    assert fetched(group_of((0, 0, 12)), 10, hbm_need="prompt") == ["g0"]


def test_the_queue_waits_behind_a_head_that_fits_nowhere() -> None:
    assert fetched(group_of((0, 0, 50)), 60, 10) == []


def test_the_average_counts_only_turns_that_fit_together() -> None:
    # Three of the six fit. Were all counted, both engines would be light and the second turn go to g0.
    assert fetched(group_of((0, 0, 110), (2, 2, 66)), *[50] * 6) == ["g0", "g1", "g0"]


def test_a_group_fetching_deals_the_whole_queue_to_the_groups_with_fewest_tokens() -> None:
    low, high = group_of((0, 0, 999), name="low"), group_of((25, 1, 999), name="high")
    placement = DecodePlacement(settings())
    for number in range(5):
        placement.push(turn(f"t{number}", 10))
    placement.deal([high, low])
    # low takes three (0, 10, 20), then the two are 30 and 25: high, then low.
    assert [choice.turn.request_id for choice in placement.fetch(low)] == ["t0", "t1", "t2", "t4"]
    assert [choice.turn.request_id for choice in placement.fetch(high)] == ["t3"]
    assert len(placement) == 0


def test_turns_of_a_group_that_is_gone_are_dealt_again_first() -> None:
    low, high = group_of((0, 0, 999), name="low"), group_of((99, 1, 999), name="high")
    placement = DecodePlacement(settings())
    placement.push(turn("first"))
    placement.deal([low, high])
    placement.push(turn("second"))
    placement.give_up_group("low")
    placement.deal([high])
    assert [choice.turn.request_id for choice in placement.fetch(high)] == ["first", "second"]


@pytest.mark.parametrize("dealt", [False, True])
def test_a_turn_that_is_withdrawn_is_not_placed(dealt: bool) -> None:
    group, placement = group_of((0, 0, 999)), DecodePlacement(settings())
    for name in "ab":
        placement.push(turn(name))
    if dealt:
        placement.deal([group])
    placement.withdraw(turn("a").request_id)
    placement.withdraw(turn("never there").request_id)
    placement.deal([group])
    assert [choice.turn.request_id for choice in placement.fetch(group)] == ["b"]
    assert len(placement) == 0


def test_engines_that_failed_the_turn_come_last_of_those_it_fits() -> None:
    placement = DecodePlacement(settings())
    group = group_of((0, 0, 99), (20, 1, 99))
    placement.push(turn("a", failed_engines=frozenset({EngineId("g0")})))
    placement.deal([group])
    assert [choice.engine_id for choice in placement.fetch(group)] == ["g1"]


def test_round_robin_takes_engines_with_room_in_turn() -> None:
    group = group_of((0, 0, 99), (0, 0, 5), (90, 3, 99))
    assert fetched(group, 10, 10, 10, placement="round_robin") == ["g0", "g2", "g0"]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4), st.integers(0, 200)), min_size=1, max_size=8),
    st.lists(st.integers(1, 60), max_size=30),
)
def test_no_engine_is_given_more_than_its_hbm(
    engines: list[tuple[int, int, int]], prompts: list[int]
) -> None:
    group = group_of(*engines)
    taken = fetched(group, *prompts)
    assert (group.free_kv_tokens >= 0).all()
    if len(taken) < len(prompts):
        assert (group.free_kv_tokens < prompts[len(taken)] + 5).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_engines_end_within_one_turn_of_one_another(prompts: list[int]) -> None:
    group = group_of(*[(0, 0, 10**6)] * 4)
    fetched(group, *prompts)
    limit_tokens = 1.05 * sum(prompts) / 4
    assert group.tokens.max() <= max(limit_tokens, group.tokens.min() + max(prompts))

"""Groups, rendezvous: how prefill and decode engines of one turn come together."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.types import EngineId, EngineInfo, EngineRole, NodeId, RequestId
from tests.engines.scheduling.turns import LOAD_LIMIT, cluster, decode_group, place, prefill_group, turn


def test_engines_of_a_node_are_in_one_group_and_a_group_has_so_many_nodes() -> None:
    placement = cluster(prefill=3, decode=2, engines=2, group_nodes=2)
    members = [group.engine_ids for role in EngineRole for group in placement.groups(role)]
    assert members == [["p0-0", "p0-1", "p1-0", "p1-1"], ["p2-0", "p2-1"], ["d0-0", "d0-1", "d1-0", "d1-1"]]


def test_without_a_number_all_nodes_of_a_role_are_one_group() -> None:
    placement = cluster(prefill=3, decode=2)
    assert [len(placement.groups(role)) for role in EngineRole] == [1, 1]


def test_an_engine_cannot_join_twice() -> None:
    placement = cluster()
    with pytest.raises(ValueError, match="p0-0 is in group prefill-group-0 already"):
        placement.add_engine(EngineInfo(EngineId("p0-0"), NodeId("p0"), EngineRole.PREFILL))


def test_prefill_first_a_turn_waits_for_decode_only_once_it_has_its_prefill_engine() -> None:
    placement = cluster()
    placement.submit(turn("a"))
    assert placement.fetch_decode(decode_group(placement)) == []
    assert placement.num_waiting == (1, 0)
    assert placement.fetch_prefill(prefill_group(placement), 0.0) == []
    assert placement.num_waiting == (0, 1)
    (pair,) = placement.fetch_decode(decode_group(placement))
    assert (pair.turn.request_id, pair.prefill.node_id, pair.decode.node_id) == ("a", "p0", "d0")


def test_independent_the_second_engine_completes_the_pair_whichever_it_is() -> None:
    placement = cluster(rendezvous="independent")
    placement.submit(turn("a"))
    assert placement.fetch_decode(decode_group(placement)) == []
    (pair,) = placement.fetch_prefill(prefill_group(placement), 0.0)
    assert pair.turn.request_id == "a"
    placement.submit(turn("b"))
    assert placement.fetch_prefill(prefill_group(placement), 0.0) == []
    (pair,) = placement.fetch_decode(decode_group(placement))
    assert pair.turn.request_id == "b"


def test_reads_are_promised_to_the_prefill_node_until_both_engines_are_known() -> None:
    placement = cluster()
    placement.submit(turn("a", 40, hit=32))
    placement.fetch_prefill(prefill_group(placement), 0.0)
    assert placement.queues.tokens(NodeId("p0")) == 32
    (pair,) = placement.fetch_decode(decode_group(placement))
    assert placement.queues.tokens(NodeId("p0")) == 32
    placement.plan_reads(pair, prefill_tokens=8, decode_tokens=24, now_s=0.0)
    assert (placement.queues.tokens(NodeId("p0")), placement.queues.tokens(NodeId("d0"))) == (8, 24)
    placement.move_reads(NodeId("p0"), NodeId("d0"), 8, now_s=0.0)
    assert (placement.queues.tokens(NodeId("p0")), placement.queues.tokens(NodeId("d0"))) == (0, 32)


def test_only_turns_whose_reads_are_planned_count_against_a_side() -> None:
    # One that waits for slots behind it is only promised, and is read after it.
    placement = cluster(prefill=1, decode=1)
    first, second = place(placement, turn("a", 40, hit=32), turn("b", 40, hit=24))
    assert placement.read_tokens_ahead(first, 0.0) == (0, 0)
    placement.plan_reads(first, prefill_tokens=12, decode_tokens=20, now_s=0.0)
    assert placement.read_tokens_ahead(second, 0.0) == (12, 20)


def test_reads_that_are_over_count_for_a_while_where_that_is_set() -> None:
    placement = cluster(prefill=1, decode=1, read_memory_s=2.0)
    first, second = place(placement, turn("a", 40, hit=32), turn("b", 40, hit=24))
    placement.plan_reads(first, prefill_tokens=32, decode_tokens=0, now_s=1.0)
    placement.queues.report(NodeId("p0"), 32)
    assert placement.read_tokens_ahead(second, 1.0) == (32, 0)
    assert placement.read_tokens_ahead(second, 3.0)[0] == pytest.approx(32 / math.e)


def test_load_comes_back_once_however_often_it_is_said() -> None:
    placement = cluster()
    place(placement, turn("a", 40, output_tokens=5))
    for _ in range(2):
        placement.prefilled(RequestId("a"))
        assert (prefill_group(placement).total_tokens, decode_group(placement).total_tokens) == (0, 40)
    for _ in range(2):
        placement.finished(RequestId("a"))
        assert decode_group(placement).total_tokens == 0
    placement.check()


@pytest.mark.parametrize("stage", ["waiting", "half", "pair", "nowhere"])
def test_a_turn_can_be_withdrawn_at_any_stage(stage: str) -> None:
    placement = cluster()
    if stage != "nowhere":
        placement.submit(turn("a", 40, hit=32))
    if stage in ("half", "pair"):
        placement.fetch_prefill(prefill_group(placement), 0.0)
    if stage == "pair":
        placement.fetch_decode(decode_group(placement))
    placement.withdraw(RequestId("a"))
    assert placement.place(0.0) == []
    assert placement.num_waiting == (0, 0)
    assert prefill_group(placement).total_tokens == decode_group(placement).total_tokens == 0
    assert placement.queues.tokens(NodeId("p0")) == 0
    placement.check()


@pytest.mark.parametrize("gone", ["p0-0", "d0-0"])
def test_turns_of_an_engine_that_is_gone_are_withdrawn_and_named(gone: str) -> None:
    placement = cluster()
    place(placement, turn("a"), turn("b"))
    assert placement.remove_engine(EngineId(gone)) == ("a",)
    placement.check()
    (pair,) = place(placement, turn("a"))
    assert gone not in (pair.prefill.engine_id, pair.decode.engine_id)


def test_turns_that_waited_for_a_group_that_is_gone_get_engines_of_another() -> None:
    placement = cluster(prefill=1, group_nodes=1)
    placement.submit(turn("a"))
    placement.fetch_prefill(prefill_group(placement), 0.0)
    placement.fetch_decode(decode_group(placement, 1))  # deals `a` to the first group
    placement.remove_engine(EngineId("d0-0"))
    (pair,) = placement.place(0.0)
    assert pair.decode.engine_id == "d1-0"


def test_placing_goes_on_past_the_size_of_a_fetch() -> None:
    placement = cluster(prefill=1, fetch_max_requests=2)
    assert len(place(placement, *(turn(f"t{number}") for number in range(7)))) == 7


EVENTS = st.lists(st.tuples(st.sampled_from(["submit", "place", "prefilled", "finished", "withdraw"]),
                            st.integers(0, 9), st.integers(1, 90)), max_size=60)  # fmt: skip


@given(EVENTS, st.sampled_from(["prefill_first", "independent"]), st.integers(0, 2))
@settings(max_examples=60)
def test_every_turn_is_paired_once_and_the_books_agree(
    events: list[tuple[str, int, int]], rendezvous: str, group_nodes: int
) -> None:
    placement = cluster(rendezvous=rendezvous, group_nodes=group_nodes)
    waiting: set[str] = set()
    paired: set[str] = set()
    for kind, number, prompt in events:
        name = RequestId(f"t{number}")
        if kind == "submit" and name not in waiting | paired:
            placement.submit(turn(name, prompt, hit=prompt // 2))
            waiting.add(name)
        elif kind == "place":
            for pair in placement.place(0.0):
                waiting.remove(pair.turn.request_id)
                paired.add(pair.turn.request_id)
                placement.plan_reads(pair, pair.turn.hit_tokens, 0, 0.0)
        elif kind == "prefilled" and name in paired:
            placement.prefilled(name)
        elif kind in ("finished", "withdraw") and (name in paired or kind == "withdraw"):
            placement.withdraw(name)
            paired.discard(name)
            waiting.discard(name)
        placement.check()
    for name in waiting | paired:
        placement.withdraw(RequestId(name))
    groups = [group for role in EngineRole for group in placement.groups(role)]
    assert [group.total_tokens for group in groups] == [0] * len(groups)


def test_the_same_events_give_the_same_decisions() -> None:
    def play() -> list[tuple[str, str, str]]:
        rng, placement, decisions = random.Random(7), cluster(prefill=3, decode=3), []
        for number in range(40):
            placement.submit(turn(f"t{number}", rng.randrange(1, LOAD_LIMIT), hit=rng.randrange(1, 50)))
            for pair in placement.place(0.0):
                decisions.append((pair.turn.request_id, pair.prefill.engine_id, pair.decode.engine_id))
            placement.prefilled(RequestId(f"t{rng.randrange(number + 1)}"))
        return decisions

    assert len(play()) > 20
    assert play() == play()

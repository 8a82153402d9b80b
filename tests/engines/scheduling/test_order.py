from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.order import TurnOrder, open_order
from engines.scheduling.queued_turn import QueuedTurn
from engines.types import RequestId
from tests.engines.scheduling.turns import settings, turn

ORDERS = ("fifo", "similar", "longest_remaining")
NEVER_AGED = 1e9


def fetch(order: TurnOrder, most: int, now_s: float = 0.0) -> list[str]:
    """As a prefill group does."""
    taken: list[QueuedTurn] = []
    while len(taken) < most and (following := order.next(taken[0] if taken else None, now_s)):
        order.remove(following.request_id)
        taken.append(following)
    return [one.request_id for one in taken]


def queue(name: str, turns: Sequence[QueuedTurn], aging_s: float = NEVER_AGED) -> TurnOrder:
    order = open_order(settings(order=name, order_aging_s=aging_s))
    for one in turns:
        order.push(one)
    return order


@pytest.mark.parametrize("name", ORDERS)
def test_an_empty_queue_has_nobody_next(name: str) -> None:
    order = queue(name, [])
    order.remove(RequestId("nobody"))
    assert order.next(None, 0.0) is None
    assert len(order) == 0


def test_fifo_goes_by_arrival_and_then_by_joining() -> None:
    order = queue("fifo", [turn("b", arrived_s=2.0), turn("a", arrived_s=1.0), turn("c", arrived_s=2.0)])
    assert fetch(order, 9) == ["a", "b", "c"]


def test_a_turn_that_comes_back_gets_its_old_place_and_only_once() -> None:
    turns = [turn("a", arrived_s=1.0), turn("b", arrived_s=2.0)]
    order = queue("fifo", turns)
    assert fetch(order, 1) == ["a"]
    order.push(turns[0])
    assert fetch(order, 9) == ["a", "b"]


def test_similar_fetches_those_nearest_in_estimate_to_the_first_come() -> None:
    estimates = {"a": 5.0, "b": 1.0, "c": 5.5, "d": 9.0, "e": 4.0, "f": 5.1}
    turns = [turn(n, arrived_s=float(i), estimate_s=s) for i, (n, s) in enumerate(estimates.items())]
    order = queue("similar", turns)
    assert fetch(order, 3) == ["a", "f", "c"]
    assert fetch(order, 3) == ["b", "e", "d"]


def test_similar_takes_an_aged_turn_before_a_nearer_one() -> None:
    turns = [
        turn("a", arrived_s=0.0, estimate_s=5.0),
        turn("far", arrived_s=1.0, estimate_s=90.0),
        turn("near", arrived_s=8.0, estimate_s=5.0),
    ]
    assert fetch(queue("similar", turns, aging_s=10.0), 2, now_s=10.0) == ["a", "near"]
    assert fetch(queue("similar", turns, aging_s=10.0), 2, now_s=11.0) == ["a", "far"]


def test_the_group_with_most_work_left_goes_first_and_stays_together() -> None:
    turns = [
        turn("x1", trajectory_group="x", remaining_tokens=3),
        turn("y1", trajectory_group="y", remaining_tokens=9),
        turn("alone", remaining_tokens=5),
        turn("y2", trajectory_group="y", remaining_tokens=1),
        turn("x2", trajectory_group="x", remaining_tokens=6),
    ]
    assert fetch(queue("longest_remaining", turns), 9) == ["y1", "y2", "x2", "x1", "alone"]


def test_a_new_fetch_begins_with_the_longest_again() -> None:
    turns = [turn(n, trajectory_group=n[0], remaining_tokens=s) for n, s in (("a1", 9), ("a2", 1), ("b1", 5))]
    order = queue("longest_remaining", turns)
    assert fetch(order, 1) == ["a1"]
    assert fetch(order, 9) == ["b1", "a2"]


def test_longest_remaining_takes_an_aged_turn_first() -> None:
    turns = [turn("short", remaining_tokens=1), turn("long", arrived_s=5.0, remaining_tokens=9)]
    assert fetch(queue("longest_remaining", turns, aging_s=10.0), 1, now_s=9.0) == ["long"]
    assert fetch(queue("longest_remaining", turns, aging_s=10.0), 1, now_s=10.0) == ["short"]


@pytest.mark.parametrize("name", ORDERS)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 5))
def test_no_turn_that_has_aged_is_passed_by_one_that_came_later(name: str, seed: int, batch: int) -> None:
    """The bound on starvation: from then on only those that stood before it go first."""
    rng, aging_s = random.Random(seed), 4.0
    order, waiting, number = queue(name, [], aging_s), dict[str, float](), 0
    for step in range(60):
        for _ in range(rng.randrange(0, 2 * batch) if step < 30 else 0):
            one = turn(
                f"t{number}",
                arrived_s=float(step),
                estimate_s=rng.choice([1, 2, 50]),
                remaining_tokens=rng.randrange(99),
                trajectory_group=rng.choice(["", "g", "h"]),
            )
            number += 1
            order.push(one)
            waiting[one.request_id] = one.arrived_s
        for name_of in fetch(order, batch, float(step)):
            arrived_s = waiting.pop(name_of)
            assert not [w for w in waiting.values() if step - w >= aging_s and w < arrived_s]
    assert len(order) == len(waiting)


@pytest.mark.parametrize("name", ORDERS)
@given(
    st.lists(
        st.tuples(st.floats(0, 9), st.integers(0, 9), st.sampled_from(["", "g", "h"]), st.booleans()),
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_every_turn_is_taken_once_unless_it_was_removed(
    name: str, made: list[tuple[float, int, str, bool]], batch: int
) -> None:
    turns = [
        turn(f"t{i}", arrived_s=a, estimate_s=e, remaining_tokens=e, trajectory_group=g)
        for i, (a, e, g, _) in enumerate(made)
    ]
    order = queue(name, turns)
    for one, (_, _, _, removed) in zip(turns, made, strict=True):
        if removed:
            order.remove(one.request_id)
    taken: list[str] = []
    while len(order):
        taken += fetch(order, batch)
    assert sorted(taken) == sorted(t.request_id for t, m in zip(turns, made, strict=True) if not m[3])

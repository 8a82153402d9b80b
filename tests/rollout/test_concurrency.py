"""The limit of agents at work follows what is lost of their KV between turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.concurrency import ConcurrencyPolicy, HitCounts, first_limit


def test_it_begins_with_as_many_as_the_store_holds_at_their_longest() -> None:
    assert first_limit(10_000_000, token_bytes=100, max_context_tokens=1000) == 100
    assert first_limit(1, token_bytes=100, max_context_tokens=1000) == 1
    assert first_limit(None, token_bytes=100, max_context_tokens=1000) is None


@pytest.mark.parametrize(
    ("lost_tokens", "num_running", "limit"),
    [
        (0, 100, 112),  # it binds and nothing is lost
        (0, 60, 100),  # it does not bind
        (500, 100, 100),  # a little is lost
        (5000, 100, 75),
        (5000, 60, 45),  # fewer are already too many
        (5000, 1, 1),
    ],
)
def test_it_grows_while_it_binds_and_nothing_is_lost_and_falls_while_too_much_is(
    lost_tokens: int, num_running: int, limit: int
) -> None:
    assert ConcurrencyPolicy(100).limit(HitCounts(10_000, lost_tokens), num_running) == limit


def test_few_tokens_say_nothing_and_are_counted_with_the_next() -> None:
    policy = ConcurrencyPolicy(100)
    assert policy.limit(HitCounts(900, 900), 100) == 100
    assert policy.limit(HitCounts(1800, 900), 100) == 75


def test_without_a_first_limit_all_are_at_work_until_too_much_is_lost() -> None:
    policy = ConcurrencyPolicy(None)
    assert policy.limit(HitCounts(10_000, 0), 64) is None
    assert policy.limit(HitCounts(20_000, 5000), 64) == 48


@settings(deadline=None)
@given(capacity=st.integers(1, 200), first=st.integers(1, 400))
def test_it_settles_near_what_the_store_holds(capacity: int, first: int) -> None:
    """A store of `capacity` contexts, where of those beyond it every block is lost."""
    policy, counts, limit = ConcurrencyPolicy(first), HitCounts(0, 0), first
    seen = []
    for _ in range(200):
        lost = max(0, limit - capacity) * 1000 // limit
        counts = HitCounts(counts.expected_tokens + 1000, counts.lost_tokens + lost)
        found = policy.limit(counts, limit)
        assert found is not None
        limit = found
        seen.append(limit)
    assert min(seen[-50:]) >= int(capacity * 0.75) - 1
    assert max(seen[-50:]) <= capacity * 1.3 + 2

"""The highest rate that holds is found from below and from above, in few trials."""

from __future__ import annotations

import pytest

from rollout.rate_search import highest_rate


@pytest.mark.parametrize("limit", [0.07, 0.9, 1.0, 1.3, 40.0])
def test_the_limit_is_found_within_the_precision(limit):
    found = highest_rate(lambda rate: rate <= limit, 1.0, precision=0.05, max_trials=20)
    assert limit / 1.06 <= found <= limit


def test_trials_are_bounded_and_no_rate_is_tried_twice():
    tried = []

    def holds(rate):
        tried.append(rate)
        return rate < 3.0

    assert highest_rate(holds, 1.0, precision=0.0001, max_trials=6) < 3.0
    assert len(tried) == len(set(tried)) == 6


def test_where_nothing_holds_the_answer_is_none_at_all():
    assert highest_rate(lambda rate: False, 1.0, precision=0.1, max_trials=5) == 0.0

"""When agents that arrive are served steadily: the rule on made turns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engines.sim.result import TurnTable
from rollout.reproduce.steadiness import AGO_S, WINDOW_S, in_window, is_steady, is_too_slow, until_decided


def turns(ttft_s: Callable[[float], float], end_s: float) -> TurnTable:
    """One a second, each with the TTFT of its second; the last ones wait."""
    submit_s = np.arange(0.0, end_s)
    times = np.array([ttft_s(at) for at in submit_s], np.float32)
    times[submit_s + times > end_s] = np.nan
    counts, unknown = np.ones(len(submit_s), np.int32), np.full(len(submit_s), np.nan)
    return TurnTable(
        agent=counts,
        round=counts,
        prompt_tokens=counts,
        hit_tokens=counts,
        output_tokens=counts,
        submit_s=submit_s,
        ttft_s=times,
        ttst_s=unknown,
        tpot_s=unknown,
        end_s=unknown,
        phases={},
    )


def test_what_is_as_it_was_half_an_hour_before_is_steady():
    end_s = AGO_S + WINDOW_S
    assert is_steady(turns(lambda _: 1.0, end_s), end_s)
    assert is_steady(turns(lambda at: 1.0 + 0.04 * at / end_s, end_s), end_s)
    assert not is_steady(turns(lambda at: 1.0 + 0.2 * at / end_s, end_s), end_s)


def test_nothing_is_steady_before_there_was_a_whole_window_half_an_hour_ago():
    end_s = AGO_S + WINDOW_S - 1
    assert not is_steady(turns(lambda _: 1.0, end_s), end_s)


def test_a_run_is_over_when_a_window_is_too_slow_or_when_it_is_steady():
    is_enough = until_decided().is_enough
    slow = turns(lambda _: 5.0, 300.0)
    assert is_too_slow(slow, 300.0)
    assert is_enough(slow, 300.0)
    fast = turns(lambda _: 1.0, AGO_S + WINDOW_S)
    assert not is_enough(fast, 300.0)
    assert is_enough(fast, AGO_S + WINDOW_S)


def test_a_turn_belongs_to_the_window_of_its_first_token():
    made = turns(lambda _: 10.0, 1000.0)
    found = made.submit_s[in_window(made, 1000.0)]
    assert (found.min(), found.max()) == (1000.0 - WINDOW_S - 10.0 + 1.0, 990.0)


def test_a_window_in_which_nothing_came_decides_nothing():
    made = turns(lambda _: 1e6, 1000.0)
    assert not until_decided().is_enough(made, 1000.0)

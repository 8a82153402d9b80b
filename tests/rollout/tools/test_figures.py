"""Counts and histograms of tools: they add up over workers and come out under flat names."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from rollout.tools.breaker import CircuitBreaker
from rollout.tools.figures import BOUNDS_S, LatencyHistogram, ToolFigures, ToolReport

seconds = st.lists(st.floats(0, 2000), max_size=20)


def histogram(samples: list[float]) -> LatencyHistogram:
    made = LatencyHistogram()
    for sample in samples:
        made.add(sample)
    return made


@given(seconds, seconds)
def test_histograms_of_two_workers_add_up_to_that_of_all_calls(
    first: list[float], second: list[float]
) -> None:
    both = histogram(first) + histogram(second)
    assert both.counts == histogram(first + second).counts
    assert abs(both.total_s - sum(first) - sum(second)) < 1e-6


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    assert histogram([0.001, 0.0011, 1e9]).counts == [1, 1, *[0] * (len(BOUNDS_S) - 2), 1]


def test_a_report_names_every_tool_of_every_worker() -> None:
    one = ToolReport(1, {"bash": ToolFigures(calls=2, failures=1, latency=histogram([0.001, 0.003]))})
    two = ToolReport(
        2, {"bash": ToolFigures(calls=1, latency=histogram([0.003])), "edit": ToolFigures(calls=4)}
    )
    series = (one + pickle.loads(pickle.dumps(two))).series()
    assert series["tools/malformed_calls"] == 3
    assert (series["tools/bash/calls"], series["tools/edit/calls"]) == (3, 4)
    assert abs(series["tools/bash/latency_s/mean"] - 0.007 / 3) < 1e-9
    assert (series["tools/bash/latency_s/le_0.001"], series["tools/bash/latency_s/le_0.004"]) == (1, 3)
    assert "tools/edit/latency_s/mean" not in series
    assert ToolReport().series() == {}


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=40))
def test_a_breaker_refuses_exactly_after_failures_in_a_row_and_for_its_time(
    calls: list[tuple[bool, float]],
) -> None:
    breaker, now_s, in_a_row, until_s = CircuitBreaker(3, 10.0), 0.0, 0, float("-inf")
    for ok, pause_s in calls:
        now_s += pause_s
        assert (breaker.refuses_for_s(now_s) > 0) == (now_s < until_s)
        if now_s < until_s:
            continue
        breaker.note(ok=ok, now_s=now_s)
        in_a_row = 0 if ok else in_a_row + 1
        if in_a_row >= 3:
            until_s = now_s + 10.0

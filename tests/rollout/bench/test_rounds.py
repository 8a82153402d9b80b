from __future__ import annotations

import pytest

from rollout.bench.ladder import BASIC, SPLIT
from rollout.bench.rounds import MOST_SLOWINGS, SLOWER, Plan, Runs, alternate
from tests.rollout.bench.runs import Script, summary

PLAN = Plan((BASIC, SPLIT), ("cluster=1p2d",), time_scale=3.0)


def run(script: Script, num_rounds: int) -> Runs:
    return alternate(script, PLAN, num_rounds, lambda text: None)


def test_steps_take_turns() -> None:
    script = Script([summary(jct_s) for jct_s in (30, 10, 33, 11, 27, 12)])
    runs = run(script, 3)
    assert [step for step, _ in script.asked] == ["basic", "split"] * 3
    assert (runs.full_s(BASIC), runs.full_s(SPLIT)) == (3 * 30, 3 * 11)


def test_all_steps_slow_down_when_the_first_round_is_too_fast_for_one() -> None:
    busy = summary(10, cpu_use=0.9)
    script = Script([summary(20), busy, *map(summary, (45, 15, 48, 18))])
    runs = run(script, 2)
    slow = 3.0 / SLOWER
    assert script.asked == [("basic", 3), ("split", 3), *[("basic", slow), ("split", slow)] * 2]
    assert (runs.full_s(BASIC), runs.full_s(SPLIT)) == (slow * 46.5, slow * 16.5)


def test_a_run_of_a_later_round_that_is_invalid_is_done_again_as_it_was() -> None:
    busy = summary(99, cpu_use=0.9)
    script = Script([*map(summary, (30, 10)), busy, *map(summary, (32, 12))])
    runs = run(script, 2)
    assert [step for step, _ in script.asked] == ["basic", "split", "basic", "basic", "split"]
    assert {time_scale for _, time_scale in script.asked} == {3.0}
    assert runs.full_s(BASIC) == 3 * 31


def test_a_step_that_is_never_valid_is_told_and_not_judged() -> None:
    busy = summary(10, cpu_use=0.9)
    runs = run(Script([*[busy] * (MOST_SLOWINGS + 2), summary(5)]), 1)
    assert not runs.judged(BASIC, SPLIT)
    assert len(runs.of(BASIC)) == 2


def test_a_run_in_which_a_trajectory_did_not_complete_is_not_valid() -> None:
    cut = summary(10, completed=1)
    assert not run(Script([*[cut] * (MOST_SLOWINGS + 2), summary(5)]), 1).judged(BASIC)


def test_a_run_that_fails_is_left_out_and_the_others_go_on() -> None:
    runs = run(Script(["it stopped", summary(5), summary(30), summary(6)]), 2)
    assert runs.failed == ["basic: it stopped"]
    assert [each.jct_s for each in runs.of(BASIC)] == [30]
    assert runs.full_s(SPLIT) == pytest.approx(3 * 5.5)

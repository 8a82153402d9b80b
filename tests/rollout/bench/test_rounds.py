from __future__ import annotations

import pytest

from rollout.bench.ladder import BASIC, SPLIT
from rollout.bench.rounds import SLOWER, Plan, Runs, alternate
from tests.rollout.bench.runs import Script, summary

PLAN = Plan((BASIC, SPLIT), ("cluster=1p2d",), time_scale=3.0)


def run(script: Script, num_rounds: int) -> Runs:
    return alternate(script, PLAN, num_rounds, lambda text: None)


def test_steps_take_turns() -> None:
    script = Script([summary(jct_s) for jct_s in (30, 10, 33, 11, 27, 12)])
    runs = run(script, 3)
    assert [step for step, _ in script.asked] == ["basic", "split"] * 3
    assert (runs.full_s(BASIC), runs.full_s(SPLIT)) == (3 * 30, 3 * 11)


def test_an_invalid_run_is_done_again_slower_and_its_step_stays_slow() -> None:
    busy = summary(10, cpu_use=0.9)
    script = Script([busy, summary(15), summary(5), summary(15), summary(5)])
    runs = run(script, 2)
    slow = 3.0 / SLOWER
    assert script.asked == [("basic", 3), ("basic", slow), ("split", 3), ("basic", slow), ("split", 3)]
    assert runs.judged(BASIC, SPLIT)
    assert runs.full_s(BASIC) == 15 * slow


def test_a_step_that_is_never_valid_is_told_and_not_judged() -> None:
    busy = summary(10, cpu_use=0.9)
    runs = run(Script([busy, busy, summary(5)]), 1)
    assert not runs.judged(BASIC, SPLIT)
    assert len(runs.of(BASIC)) == 2


def test_a_run_in_which_a_trajectory_did_not_complete_is_not_valid() -> None:
    cut = summary(10, completed=1)
    assert not run(Script([cut, cut, summary(5)]), 1).judged(BASIC)


def test_a_run_that_fails_is_left_out_and_the_others_go_on() -> None:
    runs = run(Script(["it stopped", summary(5), summary(30), summary(6)]), 2)
    assert runs.failed == ["basic: it stopped"]
    assert [each.jct_s for each in runs.of(BASIC)] == [30]
    assert runs.full_s(SPLIT) == pytest.approx(3 * 5.5)

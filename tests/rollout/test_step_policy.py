"""Every sample of a step comes back exactly once, whatever happens to it and in whatever order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout.agent_run import Sample
from rollout.batch import is_usable
from rollout.controller_config import ControllerConfig
from rollout.history import History
from rollout.step_policy import GroupRules, StepPolicy, Verdict, unplayed
from rollout.tasks import Task
from rollout.types import Outcome, StopReason, Trajectory
from tests.rollout.some_trajectories import TURN

OWN_ENDS = [reason for reason in StopReason if reason not in (StopReason.ABORTED, StopReason.DROPPED)]


def samples(num_groups: int, group_size: int) -> list[Sample]:
    return [
        Sample(Task(f"t{group}", "?", "!"), f"g{group}", index)
        for group in range(num_groups)
        for index in range(group_size)
    ]


def end(sample: Sample, reason: StopReason = StopReason.DONE) -> Trajectory:
    return unplayed(sample, reason, error="it broke" if reason is StopReason.TOOL_ERROR else None)


def reasons(verdict: Verdict) -> dict[str, StopReason]:
    return {trajectory.trajectory_id: trajectory.stop_reason for trajectory in verdict.back}


rules = st.builds(
    GroupRules, enough=st.integers(1, 5), least=st.integers(0, 3), max_replacements=st.integers(0, 3)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules=rules, num_groups=st.integers(1, 4), group_size=st.integers(1, 5), data=st.data())
def test_with_any_faults_in_any_order_every_sample_comes_back_exactly_once(
    rules: GroupRules, num_groups: int, group_size: int, data: st.DataObject
) -> None:
    wanted = samples(num_groups, group_size)
    wanted = [replace(s, start_after_s=data.draw(st.sampled_from([0.0, 1.0, 5.0]))) for s in wanted]
    before = {s.trajectory_id: s for s in wanted if data.draw(st.booleans(), "had ended before")}
    policy, now_s = StepPolicy(wanted, rules), 0.0
    running: dict[str, Sample] = {}
    dropping: set[str] = set()
    told = [policy.restore([(s, end(s, data.draw(st.sampled_from(OWN_ENDS)))) for s in before.values()])]
    while policy.num_left and told[-1].short is None:
        policy.check()
        room = data.draw(st.none() | st.integers(1, 3), "room")
        for sample in policy.begin(now_s, None if room is None else max(0, room - len(running))):
            assert sample.start_after_s <= now_s
            assert sample.trajectory_id not in running
            running[sample.trajectory_id] = sample
        if not running:
            arrival_s = policy.next_arrival_s()
            assert arrival_s is not None
            now_s = max(now_s, arrival_s)
            continue
        sample = running.pop(data.draw(st.sampled_from(sorted(running)), "who ends"))
        choices = [*OWN_ENDS, StopReason.ABORTED] if sample.trajectory_id in dropping else OWN_ENDS
        reason = data.draw(st.sampled_from(choices), "how")
        told.append(policy.ended(sample, end(sample, reason)))
        assert policy.ended(sample, end(sample)) == Verdict(), "a second end of the same attempt is not heard"
        dropping |= set(told[-1].drop)
        assert dropping & running.keys() >= set(told[-1].drop)
    policy.check()
    back = [trajectory for verdict in told for trajectory in verdict.back]
    counts = Counter(trajectory.trajectory_id for trajectory in back)
    assert set(counts.values()) <= {1}
    usable = Counter(trajectory.group_id for trajectory in back if is_usable(trajectory))
    if told[-1].short is None:
        assert set(counts) == {sample.trajectory_id for sample in wanted}
        least = min(rules.least, group_size)
        if rules.least <= group_size:
            assert all(usable[sample.group_id] >= least for sample in wanted)
    else:
        assert any(usable[sample.group_id] < rules.least for sample in wanted)


def test_a_failed_sample_is_played_again_before_others_and_no_more_often_than_allowed() -> None:
    wanted = samples(1, 3)
    policy = StepPolicy(wanted, GroupRules(enough=3, max_replacements=2))
    (first,) = policy.begin(0.0, 1)
    for attempt in (1, 2):
        assert policy.ended(first, end(first, StopReason.TOOL_ERROR)) == Verdict()
        (first,) = policy.begin(0.0, 1)
        assert (first.trajectory_id, first.attempt) == ("g0/0", attempt)
    assert reasons(policy.ended(first, end(first, StopReason.TOOL_ERROR))) == {"g0/0": StopReason.TOOL_ERROR}
    assert policy.num_replaced == 2


@pytest.mark.parametrize(
    ("reason", "again"),
    [
        (StopReason.TOOL_ERROR, True),
        (StopReason.ENGINE_ERROR, True),
        (StopReason.WALL_TIME, True),
        (StopReason.MAX_TURNS, False),
        (StopReason.MAX_CONTEXT, False),
        (StopReason.ABORTED, False),
        (StopReason.DONE, False),
    ],
)
def test_only_what_says_nothing_about_the_model_is_played_again(reason: StopReason, again: bool) -> None:
    policy = StepPolicy(samples(1, 1), GroupRules(enough=1, max_replacements=1))
    (sample,) = policy.begin(0.0, None)
    assert bool(policy.ended(sample, end(sample, reason)).back) is not again


def test_a_complete_group_drops_who_runs_and_gives_back_who_waits() -> None:
    wanted = samples(1, 5)
    policy = StepPolicy(wanted, GroupRules(enough=2))
    policy.begin(0.0, 4)
    assert policy.ended(wanted[0], end(wanted[0])).drop == ()
    verdict = policy.ended(wanted[1], end(wanted[1]))
    assert verdict.drop == ("g0/2", "g0/3")
    assert reasons(verdict) == {"g0/1": StopReason.DONE, "g0/4": StopReason.DROPPED}
    assert reasons(policy.ended(wanted[2], end(wanted[2], StopReason.ABORTED))) == {
        "g0/2": StopReason.DROPPED
    }
    assert reasons(policy.ended(wanted[3], end(wanted[3]))) == {"g0/3": StopReason.DONE}, "it was faster"


def test_a_failed_sample_of_a_complete_group_is_not_played_again() -> None:
    wanted = samples(1, 2)
    policy = StepPolicy(wanted, GroupRules(enough=1, max_replacements=5))
    policy.begin(0.0, None)
    policy.ended(wanted[0], end(wanted[0]))
    assert reasons(policy.ended(wanted[1], end(wanted[1], StopReason.TOOL_ERROR))) == {
        "g0/1": StopReason.TOOL_ERROR
    }


def test_a_group_that_cannot_have_enough_is_named_with_what_ended_and_what_to_do() -> None:
    wanted = samples(1, 3)
    policy = StepPolicy(wanted, GroupRules(enough=3, least=2))
    policy.begin(0.0, None)
    assert policy.ended(wanted[0], end(wanted[0], StopReason.TOOL_ERROR)).short is None
    short = policy.ended(wanted[1], end(wanted[1], StopReason.TOOL_ERROR)).short
    assert short is not None
    for words in ("group g0", "2 usable", "g0/1 ended tool_failed: it broke", "group_policy=wait"):
        assert words in short


def test_a_trajectory_the_caller_took_back_is_no_dropped_one() -> None:
    wanted = samples(1, 2)
    policy = StepPolicy(wanted, GroupRules(enough=2))
    policy.begin(0.0, None)
    back = policy.ended(wanted[0], end(wanted[0], StopReason.ABORTED)).back
    assert (back[0].stop_reason, back[0].outcome) == (StopReason.ABORTED, Outcome.TRUNCATED)


def test_a_dropped_sample_that_had_turns_before_a_kill_keeps_them() -> None:
    first, second = samples(1, 2)
    second = replace(second, history=History((), (TURN,), started_s=1.0, elapsed_s=4.0))
    policy = StepPolicy([first, second], GroupRules(enough=1))
    verdict = policy.restore([(first, end(first))])
    dropped = verdict.back[1]
    assert (dropped.stop_reason, dropped.turns) == (StopReason.DROPPED, (TURN,))
    assert (dropped.started_s, dropped.duration_s, dropped.phases.total) == (1.0, 4.0, 4.0)
    assert policy.num_left == 0


CONFIG = ControllerConfig(
    group_policy="wait",
    min_viable=3,
    max_replacements=2,
    oversample=0,
    adaptive=True,
    journal=True,
    journal_sync_s=1.0,
    stall_s=60.0,
    stall_oldest=5,
)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("wait", GroupRules(enough=8)),
        ("min_viable", GroupRules(enough=8, least=3)),
        ("replace", GroupRules(enough=8, max_replacements=2)),
        ("fail", GroupRules(enough=8, least=8)),
    ],
)
def test_each_group_policy_is_three_numbers(policy: str, expected: GroupRules) -> None:
    assert replace(CONFIG, group_policy=policy).rules(8) == expected  # type: ignore[arg-type]

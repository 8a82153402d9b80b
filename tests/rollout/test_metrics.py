"""JCT and the other figures, by hand and for any trajectories."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.types import PHASES, PhaseSeconds
from rollout.metrics import (
    KVBytes,
    distribution,
    job_series,
    percentile,
    series,
    summarise_job,
    summarise_step,
)
from rollout.summary import JobSummary
from rollout.types import StopReason
from tests.rollout.some_trajectories import TURN, trajectories, trajectory

EARLY = trajectory(1.0, PhaseSeconds(prefill=2.0, decode=3.0))
LATE = trajectory(4.0, PhaseSeconds(kv_load=1.0, decode=5.0, tool=2.0), reward=0.0)
KV = KVBytes(read_prefill_side=30, read_dram=5, written=70, snic_bytes=(30, 0))


def job_of(*steps: object) -> JobSummary:
    return summarise_job(steps, job="train", seed=7, timing_s={"train": 3.5}, versions={"a": "1"})


def test_jct_is_from_the_first_start_to_the_last_finish():
    assert summarise_step([LATE, EARLY], 0, 0, KV).jct_s == 12.0 - 1.0


def test_breakdown_is_the_last_finishers_with_its_late_start_as_queue():
    totals = summarise_step([EARLY, LATE], 0, 0, KV).totals
    assert totals.jct_breakdown == PhaseSeconds(queue=3.0, kv_load=1.0, decode=5.0, tool=2.0)


def test_the_longest_trajectory_need_not_be_the_last_to_finish():
    long = trajectory(0.0, PhaseSeconds(decode=6.0), sample_index=1)
    last = trajectory(5.0, PhaseSeconds(tool=2.0), sample_index=2)
    summary = summarise_step([long, last], 0, 0, KV)
    assert summary.slowest is not None
    assert summary.slowest["trajectory_id"] == "0/task/1"
    assert summary.totals.jct_breakdown == PhaseSeconds(queue=5.0, tool=2.0)


def test_mean_breakdown_is_over_all_trajectories():
    figures = summarise_step([EARLY, LATE], 0, 0, KV).figures()
    assert figures["trajectory_breakdown_mean"]["decode"] == 4.0
    assert figures["trajectory_breakdown_mean"]["kv_load"] == 0.5


def test_tokens_are_summed_over_turns():
    twice = replace(TURN, prompt_tokens=200, hit_tokens=128, recomputed_tokens=9, num_attempts=2)
    figures = summarise_step([replace(EARLY, turns=(TURN, twice))], 0, 0, KV).figures()
    assert figures["tokens"] == {
        "prompt": 300, "hit": 192, "miss": 108, "output": 10, "recomputed": 9,
        "renewed": 0, "over_older_kv": 0,
    }  # fmt: skip
    assert figures["hit_rate"] == 192 / 300
    assert (figures["num_turns"], figures["num_attempts"]) == (2, 3)


def test_every_outcome_is_counted_even_when_there_was_none():
    failed = replace(EARLY, stop_reason=StopReason.TOOL_ERROR, error="it broke")
    outcomes = summarise_step([EARLY, failed, failed], 0, 0, KV).figures()["outcomes"]
    assert outcomes == {
        "completed": 1, "truncated": 0, "tool_failed": 2, "engine_failed": 0, "timed_out": 0,
    }  # fmt: skip


def test_tail_is_what_is_left_of_the_jct_when_nine_in_ten_are_done():
    nine = [trajectory(0.0, PhaseSeconds(decode=1.0 + i / 10)) for i in range(9)]
    straggler = trajectory(0.0, PhaseSeconds(decode=9.0))
    assert summarise_step([*nine, straggler], 0, 0, KV).tail_frac == pytest.approx(0.8)
    assert summarise_step([straggler], 0, 0, KV).tail_frac == 0.0


def test_a_step_of_nothing_has_no_made_up_figures():
    figures = summarise_step([], 0, 0, KVBytes()).figures()
    assert figures["jct_s"] == 0.0
    assert figures["num_trajectories"] == 0
    for name in ("reward_mean", "hit_rate", "tail_frac", "slowest"):
        assert figures[name] is None, name
    assert figures["ttft_s"] == {"mean": None, "p50": None, "p99": None}
    assert figures["kv"]["snic_max_over_avg"] is None


def test_a_turn_of_one_token_counts_in_ttft_only():
    short = replace(TURN, ttst_s=None, tpot_s=None, ttft_s=0.4)
    figures = summarise_step([replace(EARLY, turns=(TURN, short))], 0, 0, KV).figures()
    assert figures["ttft_s"]["mean"] == pytest.approx(0.3)
    assert figures["tpot_s"]["mean"] == 0.05


@pytest.mark.parametrize(
    ("samples", "share", "value"),
    [
        ([], 0.5, None),
        ([3.0], 0.99, 3.0),
        ([4.0, 1.0], 0.5, 2.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.5, 3.0),
        ([float(i) for i in range(101)], 0.99, 99.0),
        ([0.0, 10.0], 0.0, 0.0),
        ([0.0, 10.0], 1.0, 10.0),
    ],
)
def test_percentiles_are_interpolated_linearly(samples, share, value):
    assert percentile(samples, share) == value


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_percentiles_lie_in_order_within_the_samples(samples):
    found = distribution(samples)
    assert min(samples) <= found["p50"] <= found["p99"] <= max(samples)


def test_busiest_snic_is_compared_with_the_mean():
    assert KV.figures()["snic_max_over_avg"] == 2.0
    assert KVBytes(snic_bytes=(5, 5, 5)).figures()["snic_max_over_avg"] == 1.0


def test_kv_counters_add_and_subtract_even_when_a_snic_joins():
    later = KV + KVBytes(read_decode_side=1, snic_bytes=(1, 2, 3))
    assert later.snic_bytes == (31, 2, 3)
    assert later - KV == KVBytes(read_decode_side=1, snic_bytes=(1, 2, 3))


def test_a_jobs_jct_is_the_sum_of_its_steps_and_training_stands_beside_it():
    steps = [summarise_step([EARLY, LATE], 0, 0, KV), summarise_step([EARLY], 1, 1, KV)]
    job = job_of(*steps)
    assert job["jct_s"] == 11.0 + 5.0
    assert job["timing_s"] == {"train": 3.5}
    assert job["jct_breakdown"]["queue"] == 3.0
    assert job["jct_breakdown"]["decode"] == 8.0
    assert job["reward_mean"] == pytest.approx(2 / 3)
    assert [step["weights_version"] for step in job["steps"]] == [0, 1]
    assert job["kv"]["read_bytes"] == {"prefill_side": 60, "decode_side": 0, "dram": 10, "ahead": 0}


def test_a_jobs_percentiles_are_over_all_turns_not_over_steps():
    slow = replace(TURN, ttft_s=1.0)
    steps = [
        summarise_step([replace(EARLY, turns=(TURN,) * 3)], 0, 0, KV),
        summarise_step([replace(EARLY, turns=(slow,))], 1, 0, KV),
    ]
    assert job_of(*steps)["ttft_s"] == {
        "mean": pytest.approx(0.4), "p50": 0.2, "p99": pytest.approx(0.2 + 0.97 * 0.8),
    }  # fmt: skip


def test_a_job_summary_is_plain_json():
    job = job_of(summarise_step([EARLY, LATE], 0, 0, KV))
    assert json.loads(json.dumps(job, allow_nan=False)) == job


def test_a_job_without_a_step_can_still_be_told():
    assert job_of()["jct_s"] == 0.0
    assert job_of()["steps"] == []


def test_series_are_flat_names_with_units():
    found = series(summarise_step([EARLY, LATE], 3, 2, KV))
    assert found["rollout/jct_s"] == found["timing_s/gen"] == 11.0
    assert found["rollout/jct_breakdown/kv_load_s"] == 1.0
    assert found["rollout/trajectory_breakdown_mean/decode_s"] == 4.0
    assert found["rollout/ttft_s/p99"] == 0.2
    assert found["rollout/outcomes/completed"] == 2
    assert found["rollout/weights_version"] == 2
    assert found["rollout/slowest/duration_s"] == 8.0
    assert found["kv/read_bytes/prefill_side"] == 30
    assert found["kv/written_bytes"] == 70
    assert not any(name.startswith("rollout/kv") for name in found)
    assert "rollout/step" not in found


def test_series_leave_out_what_was_not_measured():
    found = series(summarise_step([], 0, 0, KVBytes()))
    assert "rollout/hit_rate" not in found
    assert "rollout/ttft_s/mean" not in found
    assert found["rollout/num_trajectories"] == 0


def test_job_series_carry_the_jobs_figures():
    found = job_series(job_of(summarise_step([EARLY], 0, 0, KV)))
    assert found["job/jct_s"] == 5.0
    assert found["job/jct_breakdown/decode_s"] == 3.0
    assert found["job/timing_s/train"] == 3.5
    assert "job/seed" not in found


@settings(max_examples=60)
@given(st.lists(trajectories(), min_size=1, max_size=5), st.lists(trajectories(), max_size=3))
def test_parts_always_sum_to_the_whole(first, second):
    steps = [summarise_step(first, 0, 0, KV), summarise_step(second, 1, 1, KV)]
    for figures in (*(step.figures() for step in steps), job_of(*steps)):
        assert math.isclose(
            sum(figures["jct_breakdown"].values()), figures["jct_s"], rel_tol=0.01, abs_tol=1e-6
        )
        tokens = figures["tokens"]
        assert tokens["hit"] + tokens["miss"] == tokens["prompt"]
        assert sum(figures["outcomes"].values()) == figures["num_trajectories"]
        assert set(figures["jct_breakdown"]) == set(PHASES)


@settings(max_examples=30)
@given(st.lists(trajectories(), min_size=1, max_size=4))
def test_the_mean_breakdown_sums_to_the_mean_duration(some):
    figures = summarise_step(some, 0, 0, KV).figures()
    mean_s = sum(t.duration_s for t in some) / len(some)
    assert sum(figures["trajectory_breakdown_mean"].values()) == pytest.approx(mean_s)

"""What a replay works out before it starts: rates by setting and scale, agents, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.model.step_time import StepTimes
from rollout.compose import load_config
from rollout.errors import UserError
from rollout.paced_engines import effective_rates, paced_spec
from rollout.replay import plan_replay
from rollout.replay_rates import default_agents, oracle_s, storage_bound_rate, workload
from rollout.traces.session import Piece, Round, Session

HEADER = "session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    rows = [
        f"{name},{index},0,{2000 if index == 0 else 400},100,500\n" for name in "abc" for index in range(5)
    ]
    (tmp_path / "trace.csv").write_text(HEADER + "".join(rows))
    return f"trace={tmp_path / 'trace.csv'}"


def plan(*overrides: str):
    return plan_replay(load_config(["job=replay", *overrides]))


def test_rates_are_scaled_so_that_moving_and_computing_keep_their_ratio():
    config = load_config(["job=replay", "scale=41", "time_scale=3"])
    paced = paced_spec(config)
    assert paced is not None
    assert paced.layer_bytes == 16
    rates = effective_rates(config)
    assert rates.snic_bytes_per_s == pytest.approx(50e9 / 8 * 3 / 41)
    assert rates.cnic_bytes_per_s == pytest.approx(50e9 * 3 / 41)


def test_rates_follow_the_bytes_that_are_moved_in_truth():
    paced = paced_spec(load_config(["job=replay", "scale=50"]))
    assert paced is not None
    assert paced.effective_scale == 656 / 16
    rates = effective_rates(load_config(["job=replay", "scale=50", "time_scale=1"]))
    assert rates.snic_bytes_per_s == pytest.approx(50e9 / 8 / paced.effective_scale)


def test_engines_that_run_a_model_have_the_clusters_rates_as_they_are(trace):
    config = load_config(["job=replay", trace, "engines=transformers", "cluster=1p1d"])
    assert effective_rates(config) == config.cluster
    made = plan("engines=transformers", trace)
    assert made.time_scale == 1.0
    assert len(made.tasks) == 3
    assert made.figures()["scale"] is None
    assert "setting, scale and time_scale change nothing" in made.told()
    with pytest.raises(UserError, match="setting=storage_bound goes by modelled times"):
        plan("engines=transformers", trace, "setting=storage_bound")


def test_the_default_is_the_papers_ratio_of_agents_and_the_default_rate_is_about_150_mb_a_second(trace):
    made = plan(trace)
    assert len(made.tasks) == 64
    assert len(plan(trace, "cluster=2p1d").tasks) == 128
    assert 100e6 < made.figures()["rates"]["snic_bytes_per_s"] < 200e6
    assert len(plan(trace, "num_agents=5").tasks) == 5


def test_buffers_follow_the_scale_unless_they_are_given():
    sizes = [load_config(["job=replay", f"scale={scale}"]).kvstore.staging_bytes for scale in (10, 100)]
    assert sizes == [10**9, 10**8]
    assert load_config(["job=replay", "kvstore.staging_bytes=12345678"]).kvstore.staging_bytes == 12345678


def test_qwen_has_the_papers_larger_buffers():
    qwen = load_config(["job=replay", "model_profile=qwen25_32b", "scale=100"])
    assert qwen.kvstore.staging_bytes == 4 * 10**8


def test_storage_bound_lowers_only_the_storage_nics_until_reading_takes_three_times_the_oracle(trace):
    paper, bound = plan(trace), plan(trace, "setting=storage_bound")
    assert bound.config.cluster.cnic_bytes_per_s == paper.config.cluster.cnic_bytes_per_s
    rate = bound.config.cluster.snic_bytes_per_s
    assert rate < paper.config.cluster.snic_bytes_per_s
    paced = paced_spec(bound.config)
    load = workload([task.session for task in bound.tasks], StepTimes(paced.profile, 1.0), 64)
    read_s = load.read_tokens * 40_016 / (3 * rate)
    assert read_s == pytest.approx(3 * oracle_s(load, 1))
    assert bound.oracle_s == pytest.approx(oracle_s(load, 1) / bound.time_scale)


def test_the_rate_does_not_depend_on_the_scales(trace):
    rates = [
        plan(
            trace, "setting=storage_bound", f"scale={scale}", f"time_scale={times}"
        ).config.cluster.snic_bytes_per_s
        for scale, times in ((82, 1), (41, 4))
    ]
    assert rates[0] == pytest.approx(rates[1])


def test_a_workload_counts_whole_blocks_of_what_the_agent_had():
    rounds = (Round((Piece("s", 0, 100),), 29), Round((Piece("s", 100, 10),), 1, keep_tokens=None))
    times = StepTimes(paced_spec(load_config(["job=replay"])).profile, 1.0)
    load = workload([Session("s", rounds)], times, 64)
    assert load.read_tokens == 128
    alone = workload([Session("s", rounds[:1])], times, 64)
    assert alone.read_tokens == 0
    assert load.longest_agent_s > alone.longest_agent_s > 29 * 0.02


def test_pooled_reading_takes_three_times_the_oracle():
    assert storage_bound_rate(read_bytes=900.0, num_snics=3, oracle_time_s=10.0) == 10.0


def test_there_are_at_least_eight_agents_for_each_storage_nic():
    assert default_agents(num_prefill_engines=1, num_snics=3) == 64
    assert default_agents(num_prefill_engines=1, num_snics=20) == 160


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.max_context_tokens=1000"], ["no session", "1000", "2100"]),
        (
            ["kvstore.staging_bytes=1000000"],
            ["session a", "4165 tokens", "66 blocks", "kvstore.staging_bytes=1000000"],
        ),
        (["engines.decode_kv_bytes=1000000"], ["session a", "66 blocks", "decode_kv_bytes=1000000"]),
        (["kvstore.capacity_bytes=100000000"], ["GB of KV", "kvstore.capacity_bytes", "raise scale"]),
    ],
)
def test_what_no_buffer_holds_is_refused_in_one_line_that_names_both_sizes(trace, overrides, words):
    with pytest.raises(UserError) as caught:
        plan(trace, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_agents_arrive_in_the_runs_time_not_the_recorded_one(trace):
    made = plan(trace, "arrivals=poisson", "agents_per_s=2", "time_scale=4", "num_agents=2000")
    assert made.tasks[-1].start_after_s == pytest.approx(2000 / 8, rel=0.1)


def test_sessions_that_were_cut_are_counted(trace):
    made = plan(trace, "task.max_context_tokens=3000")
    assert made.num_cut == 3
    assert all(len(task.session.rounds) in (2, 3) for task in made.tasks)

"""`job=simulate` and `job=plan` as a user sees them: what they leave, and what they refuse in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rollout.__main__ import main
from rollout.compose import load_config
from rollout.simulation.spec import sim_spec

QWEN = ("model_profile=qwen25_32b", "cluster=1p1d", "simulation.gpus_per_node=2", "monitor=off")
SMALL = (*QWEN, "trace=paper-32k", "num_agents=3", "trace_window=4")
HEAD = "session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"


def run(run_dir: Path, *overrides: str) -> dict[str, object]:
    assert main([f"run_dir={run_dir}", *overrides]) == 0
    return json.loads((run_dir / "summary.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], run_dir: Path, *overrides: str) -> str:
    """The one line."""
    code = main([f"run_dir={run_dir}", "monitor=off", *overrides])
    line = capsys.readouterr().err
    assert code == 2, line
    assert line.startswith("rollout: error: ")
    assert line.count("\n") == 1
    assert not run_dir.exists()
    return line


def test_a_simulation_leaves_the_figures_of_a_job_and_says_that_it_is_one(tmp_path, capsys):
    summary = run(tmp_path / "run", "job=simulate", *SMALL)
    assert summary["simulated"] is True
    assert summary["outcomes"]["completed"] == 3
    assert summary["num_turns"] == 12
    tokens = summary["tokens"]
    assert tokens["prompt"] == tokens["hit"] + tokens["miss"]
    read = summary["kv"]["read_bytes"]
    assert read["prefill_side"] + read["decode_side"] == tokens["hit"] * 262_144
    assert sum(summary["jct_breakdown"].values()) == pytest.approx(summary["jct_s"], rel=1e-3)
    assert summary["simulation"]["origins"]["attention_s"] == "derived"
    assert summary["simulation"]["bottleneck"]
    assert summary["replay"]["slo"]["met"] is not None
    told = capsys.readouterr().out
    assert "simulated, nothing was run" in told
    assert "derived times of qwen25_32b" in told
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0


def test_a_seed_decides_a_simulation(tmp_path):
    first, again = (run(tmp_path / name, "job=simulate", *SMALL) for name in "ab")
    assert first["jct_s"] == again["jct_s"]
    assert first["ttft_s"] == again["ttft_s"]


def test_agents_may_arrive_one_after_the_other(tmp_path):
    summary = run(tmp_path / "run", "job=simulate", *SMALL, "arrivals=poisson", "agents_per_s=0.01")
    assert summary["jct_s"] > 50


def test_contexts_can_be_read_ahead_while_tools_work(tmp_path):
    trace = tmp_path / "waits.csv"
    rounds = [f"a,{number},0,2000,100,60000\n" for number in range(4)]
    trace.write_text(HEAD + "".join(rounds))
    overrides = (*QWEN, f"trace={trace}", "num_agents=1", "tool_wait_scale=1")
    overrides = (*overrides, "simulation.dram_bytes=100000000000")
    plain = run(tmp_path / "plain", "job=simulate", *overrides)
    ahead = run(tmp_path / "ahead", "job=simulate", *overrides, "scheduler.prefetch=true")
    read, read_with_it = plain["kv"]["read_bytes"], ahead["kv"]["read_bytes"]
    assert read_with_it["prefill_side"] + read_with_it["decode_side"] == 0
    assert read_with_it["dram"] > read["dram"]
    assert ahead["ttft_s"]["mean"] < plain["ttft_s"]["mean"]


def test_the_papers_engines_wait_for_no_burst_and_others_may():
    plain, waiting = (
        sim_spec(load_config(["job=simulate", *more])) for more in ((), ("engines.burst_linger_s=0.03",))
    )
    assert (plain.burst_linger_s, waiting.burst_linger_s) == (0.0, 0.03)


def test_a_plan_tells_the_best_divisions_first(tmp_path, capsys):
    summary = run(tmp_path / "run", "job=plan", *SMALL, "budget.nodes=3", "budget.best=1")
    splits = summary["splits"]
    assert sorted(split["split"] for split in splits) == ["1P2D", "2P1D"]
    assert splits[0]["jct_s"] <= splits[1]["jct_s"]
    assert all(split["bottleneck"] for split in splits)
    told = capsys.readouterr().out
    assert "best 1 of 2 divisions" in told
    assert splits[0]["split"] in told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model_profile=gpt"], "model_profile is one of ds_27b"),
        (["~model_profile.weights_bytes"], "model_profile.weights_bytes is missing"),
        (["cluster=1p1d"], "dsv32_660b does not fit the prefill GPUs: 99.6 GB of weights"),
        (["engines.decode_kv_bytes=200000000000"], "lower engines.decode_kv_bytes"),
        (["cluster=local"], "needs the rates of NICs"),
        (["engines.decode_engines_per_node=2"], "a simulated cluster has nodes of one kind"),
        (["engines.prefill_nodes=0"], "engines.prefill_nodes must be >= 1, got 0"),
        (["simulation.gpus_per_node=0"], "simulation.gpus_per_node must be >= 1, got 0"),
        (["simulation.storage_bytes_per_s=-1"], "storage_bytes_per_s must be > 0"),
        (["simulation.sharing=fair"], "'closed_form' or 'max_min'"),
        (["cluster.traffic_classes=false"], "traffic_classes"),
        (["scale=82"], "scale must be 1 where job=simulate"),
        (["engines=transformers"], "engines must be paced, got transformers"),
        (["trace=/no/such/trace.csv"], "trace /no/such/trace.csv does not exist"),
        (["task.max_context_tokens=100"], "no session of the trace fits"),
        (["trace=paper-32k", "kvstore.staging_bytes=1000000"], "staging_bytes=8000000 holds"),
        (["scheduler.prefetch=true"], "kvstore.dram_bytes or simulation.dram_bytes must be > 0 where"),
        (["arrivals=poisson"], "agents_per_s must be given with arrivals=poisson"),
        (["job=plan", "budget.nodes=1"], "budget.nodes must be >= 2, got 1"),
        (["job=plan", "budget.nodes=2"], "no division of 2 nodes works: dsv32_660b does not fit"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(overrides, told, tmp_path, capsys):
    assert told in refused(capsys, tmp_path / "run", "job=simulate", *overrides)


def test_a_trace_longer_than_the_models_context_is_refused(tmp_path, capsys):
    trace = tmp_path / "long.csv"
    trace.write_text(HEAD + "a,0,0,200000,20,0\n")
    line = refused(capsys, tmp_path / "run", "job=simulate", f"trace={trace}")
    assert "session a of the trace comes to 200020 tokens" in line
    assert "the context of dsv32_660b has 163840" in line
    assert "task.max_context_tokens=163840" in line

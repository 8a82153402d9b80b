"""`python -m rollout job=replay` as a user runs it: on a tiny real model, and on paced engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rollout.records import read_trajectories

pytestmark = pytest.mark.ray
TRACE = """\
session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms
a,0,0,200,20,100
a,1,220,50,17,100
a,2,287,33,9,100
b,0,0,100,5,100
b,1,105,64,12,100
"""
QUIET = ("monitor=off", "ray.agent_workers=1", "cluster=1p1d", "kvstore.block_tokens=16")


def replay(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "trace.csv").write_text(TRACE)
    arguments = ["job=replay", f"trace={tmp_path / 'trace.csv'}", f"run_dir={tmp_path / 'run'}"]
    return subprocess.run(
        [sys.executable, "-m", "rollout", *arguments, *QUIET, *overrides],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def summary_of(done: subprocess.CompletedProcess[str], tmp_path: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    return found


def test_a_model_replays_every_round_and_the_hits_come_from_the_store(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    done = replay(tmp_path, "engines=transformers", f"model.path={tiny_model_dir}", "num_agents=3")
    summary = summary_of(done, tmp_path)
    assert summary["job"] == "replay"
    assert summary["outcomes"]["completed"] == summary["num_trajectories"] == 3
    assert summary["replay"]["agents"] == 3
    assert 0 < summary["replay"]["cpu_use"] <= 1
    played = {t.task_id: t for t in read_trajectories(tmp_path / "run" / "trajectories.parquet", 0)}
    assert [turn.prompt_tokens for turn in played["a"].turns] == [200, 270, 320]
    assert [turn.output_tokens for turn in played["a"].turns] == [20, 17, 9]
    assert [turn.hit_tokens for turn in played["a"].turns] == [0, 208, 272]
    (extra,) = set(played) - {"a", "b"}
    assert played[extra].turns[0].output_tokens == 1
    assert played[extra].turns[1].hit_tokens == 64
    assert summary["tokens"]["output"] == sum(t.output_tokens for p in played.values() for t in p.turns)


def test_paced_engines_replay_a_window_whose_past_is_in_the_store(tmp_path: Path) -> None:
    done = replay(tmp_path, "num_agents=2", "trace_window=1", "time_scale=20", "tool_wait_scale=1")
    summary = summary_of(done, tmp_path)
    assert summary["num_turns"] == 2
    assert summary["replay"]["history_tokens"] > 0
    played = {t.task_id: t for t in read_trajectories(tmp_path / "run" / "trajectories.parquet", 0)}
    (turn,) = played["a"].turns
    assert (turn.prompt_tokens, turn.hit_tokens, turn.output_tokens) == (270, 208, 17)
    assert summary["kv"]["read_bytes"]["prefill_side"] > 0
    assert summary["replay"]["verified_bytes"] > summary["tokens"]["hit"] * 61 * 8


def test_agents_that_arrive_by_a_poisson_process_are_told_whether_they_were_served_in_time(
    tmp_path: Path,
) -> None:
    done = replay(tmp_path, "num_agents=3", "time_scale=20", "arrivals=poisson", "agents_per_s=0.1")
    summary = summary_of(done, tmp_path)
    assert summary["outcomes"]["completed"] == 3
    assert summary["replay"]["slo"]["tpot_limit_s"] == 0.05 / 20
    started = [t.started_s for t in read_trajectories(tmp_path / "run" / "trajectories.parquet", 0)]
    assert len(set(started)) == 3
    assert max(started) > 0.05


def test_a_malformed_trace_costs_one_line_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(TRACE + "b,2,0,-1,1,0\n")
    done = replay(tmp_path, f"trace={tmp_path / 'bad.csv'}")
    assert done.returncode == 2
    assert done.stderr == f"rollout: error: {tmp_path / 'bad.csv'}:7: input_len must be >= 0, got -1\n"
    assert not (tmp_path / "run").exists()

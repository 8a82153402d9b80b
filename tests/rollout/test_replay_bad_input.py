"""What `job=replay` refuses, as a user sees it: one line, exit code 2, and nothing begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.__main__ import main

HEAD = "session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"
GOOD = HEAD + "a,0,0,200,20,100\na,1,220,50,17,100\n"


def refused(capsys: pytest.CaptureFixture[str], run_dir: Path, *overrides: str) -> str:
    """The one line."""
    code = main(["job=replay", "monitor=off", f"run_dir={run_dir}", *overrides])
    line = capsys.readouterr().err
    assert code == 2, line
    assert line.startswith("rollout: error: ")
    assert line.count("\n") == 1
    assert not run_dir.exists()
    return line


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("cluster.snic_bytes_per_s=0", "cluster.snic_bytes_per_s must be > 0"),
        ("cluster.cnic_bytes_per_s=-1", "cluster.cnic_bytes_per_s must be > 0"),
        ("cluster=9p9d", "cluster is one of 1p1d, 1p2d"),
        ("engines.decode_nodes=0", "engines.decode_nodes must be >= 1, got 0"),
        ("engines.prefill_nodes=0", "engines.prefill_nodes must be >= 1, got 0"),
        ("scheduler.read_plan=null", "scheduler.read_plan must be 'basic', 'dual', 'split'"),
        ("scheduler.read_plan=nearest", 'got "nearest"'),
        ("scheduler.heartbeat_s=0", "heartbeat_s must be > 0 and finite"),
        ("scheduler.heartbeat_deadline_s=-1", "heartbeat_deadline_s must be > 0 and finite"),
        ("model_profile=null", "model_profile"),
        ("model_profile=gpt", "model_profile is one of ds_27b"),
        ("setting=fast", "setting must be 'paper' or 'storage_bound'"),
        ("scale=0", "scale must be > 0"),
        ("time_scale=nan", "time_scale must be > 0"),
        ("trace_window=0", "trace_window must be >= 1"),
        ("num_agents=0", "num_agents must be >= 1"),
        ("tool_wait_scale=-1", "tool_wait_scale must be >= 0"),
        ("arrivals=poisson", "agents_per_s must be given with arrivals=poisson"),
        ("agents_per_s=0", "agents_per_s must be > 0"),
        ("trace=/no/such/trace.csv", "trace /no/such/trace.csv does not exist"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    override: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, tmp_path / "run", override)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("trace.csv", "what,is,this\n1,2,3\n", "trace.csv"),
        ("trace.xml", "<trace/>", "trace.xml"),
        ("trace.jsonl", '{"unknown": 1}\n', "trace.jsonl"),
        ("trace.csv", "", "trace.csv"),
        ("trace.csv", HEAD, "trace.csv"),
        ("trace.csv", HEAD + "a,0,0,200,-20,100\n", "trace.csv:2: output_len must be >= "),
        ("trace.csv", HEAD + "a,0,0,200,20\n", "trace.csv:2: "),
        ("trace.csv", HEAD + "a,0,0,many,20,100\n", "trace.csv:2: input_len"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named_with_its_line(
    name: str, text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert told in refused(capsys, tmp_path / "run", f"trace={tmp_path / name}")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("kvstore.staging_bytes=200000", "kvstore.staging_bytes=200000 holds "),
        ("engines.decode_kv_bytes=1000", "engines.decode_kv_bytes=1000 holds 0 blocks"),
        ("kvstore.capacity_bytes=1000", "kvstore.capacity_bytes"),
        ("task.max_context_tokens=100", "raise task.max_context_tokens"),
    ],
)
def test_a_context_that_no_buffer_holds_is_refused_with_both_sizes(
    override: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace.csv").write_text(GOOD)
    assert told in refused(capsys, tmp_path / "run", f"trace={tmp_path / 'trace.csv'}", override)


def test_a_decision_log_that_is_there_is_not_overwritten_unless_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "decisions.jsonl"
    log.write_text("from an earlier run")
    told = refused(capsys, tmp_path / "run", f"scheduler.decision_log={log}")
    assert "is there already; name another file, or overwrite=true" in told
    assert log.read_text() == "from an earlier run"

"""The closing table says what summary.json says, in few lines, wherever it is printed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engines.types import PHASES, PhaseSeconds
from rollout.metrics import KVBytes, summarise_job, summarise_step
from rollout.report import PLAIN_COLUMNS, print_report
from rollout.run_dir import RunDir
from rollout.summary import JobSummary
from rollout.types import StopReason
from tests.rollout.some_trajectories import TURN, trajectory

PHASES_OF_ONE = PhaseSeconds(queue=0.5, kv_load=1.5, prefill=2.0, decode=6.0)
KV = KVBytes(123_456_789, 2_000, 30_000_000, 98_000_000, (123_456_789, 2_000, 0))


def job_of(num_steps: int) -> JobSummary:
    done = trajectory(0.0, PHASES_OF_ONE, turns=(TURN, replace(TURN, hit_tokens=32, ttft_s=1.75)))
    cut = replace(done, reward=0.0, stop_reason=StopReason.MAX_TURNS)
    steps = [summarise_step([done, done, cut], s, s, KV) for s in range(num_steps)]
    return summarise_job(steps, job="train", seed=7, timing_s={"train": 31.25}, versions={})


@pytest.fixture
def run_dir(tmp_path) -> Iterator[RunDir]:
    with RunDir.open(tmp_path / "run", overwrite=False) as opened:
        opened.write_config("seed: 7\n")
        opened.metrics.write_text("{}\n")
        opened.trajectories.write_text("")
        opened.wandb.mkdir()
        opened.checkpoints.mkdir()
        opened.write_summary({})
        yield opened


def printed(summary: JobSummary, run_dir: RunDir) -> str:
    stream = io.StringIO()
    print_report(summary, run_dir, stream)
    return stream.getvalue()


def row(text: str, start: str) -> list[str]:
    """The words of the line that begins so."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.split()


def test_it_tells_jct_and_what_stands_beside_it(run_dir):
    text = printed(job_of(2), run_dir)
    assert "JCT 20 s   not in it: train 31.2 s" in text
    assert "reward 0.67, 12 turns, 6 trajectories (4 completed, 2 truncated)" in text


def test_it_tells_each_phase_in_seconds_and_percent(run_dir):
    text = printed(job_of(2), run_dir)
    assert row(text, "kv_load")[-5:] == ["3.00", "15.0", "██", "1.50", "15.0"]
    assert row(text, "decode")[-5:-3] == ["12.00", "60.0"]
    assert row(text, "sum ") == ["sum", "20.00", "10.00"]
    assert all(row(text, f"{phase} ") for phase in PHASES)


def test_it_tells_latencies_tokens_and_bytes(run_dir):
    text = printed(job_of(1), run_dir)
    assert row(text, "TTFT")[1:7] == ["975", "ms", "975", "ms", "1.75", "s"]
    assert row(text, "TPOT")[1:7] == ["50", "ms"] * 3
    words = " ".join(text.split())
    for told in (
        "prompt 600",
        "miss 312",
        "hit rate 48.0%",
        "read on the prefill side 123.5 MB",
        "read from DRAM 30.0 MB",
        "written 98.0 MB",
        "busiest SNIC over mean 3.00",
    ):
        assert told in words, told


def test_it_tells_each_step(run_dir):
    text = printed(job_of(2), run_dir)
    assert row(text, "0 ")[:8] == ["0", "v0", "10", "s", "0.67", "48.0%", "2/3", "6"]
    assert row(text, "1 ")[:2] == ["1", "v1"]


def test_of_many_steps_it_shows_the_ends_in_at_most_forty_lines(run_dir):
    text = printed(job_of(50), run_dir)
    assert "46 steps not shown" in text
    assert row(text, "49 ")[1] == "v49"
    assert len(text.splitlines()) <= 40


def test_off_a_terminal_it_is_plain_and_fits(run_dir, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = printed(job_of(3), run_dir)
    assert "\x1b" not in text
    assert "…" not in text
    widths = [len(line) for line in text.splitlines() if "files in" not in line]
    assert max(widths) <= PLAIN_COLUMNS


def test_where_only_ascii_can_be_shown_nothing_breaks(run_dir):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_report(job_of(2), run_dir, stream)
    stream.flush()
    assert "##" in raw.getvalue().decode("ascii")


def test_what_was_not_measured_is_a_dash(run_dir):
    text = printed(summarise_job([], job="rollout", seed=0, timing_s={}, versions={}), run_dir)
    assert row(text, "TTFT")[1:4] == ["-", "-", "-"]
    assert "reward -, 0 turns, 0 trajectories (none)" in text
    assert row(text, "JCT") == ["JCT", "0", "s"]


def test_it_says_which_files_are_there(run_dir, monkeypatch):
    monkeypatch.chdir(run_dir.path.parent)
    run_dir.wandb.rmdir()
    text = printed(job_of(1), run_dir)
    assert "files in run" in text
    assert "trajectories.parquet" in text
    assert "wandb" not in text


def test_it_prints_a_summary_read_back_from_disk_alike(run_dir):
    summary = job_of(2)
    run_dir.write_summary(summary)
    read_back: JobSummary = json.loads(run_dir.summary.read_text())
    assert printed(read_back, run_dir) == printed(summary, run_dir)


def test_without_a_stream_it_goes_to_stdout(run_dir, capsys):
    print_report(job_of(1), run_dir)
    assert "JCT 10 s" in capsys.readouterr().out


def test_it_says_what_a_resumed_run_went_on_from(run_dir: RunDir) -> None:
    resumed = {
        "step": 1,
        "elapsed_s": 12.0,
        "ended": 3,
        "continued": 2,
        "continued_turns": 9,
        "begun_anew": 1,
    }
    summary = {**job_of(1), "resumed": {**resumed, "torn_bytes": 0}}
    said = " ".join(printed(summary, run_dir).split())  # type: ignore[arg-type]
    assert (
        "resumed in step 1 at 12 s: 3 trajectories had ended, 2 went on after 9 turns, 1 began anew" in said
    )

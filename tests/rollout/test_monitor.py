"""Every number reaches metrics.jsonl, and W&B gets the same or the job goes on without it."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.types import PhaseSeconds
from rollout.config import MonitorConfig
from rollout.errors import UserError
from rollout.metrics import KVBytes, job_series, series, summarise_job, summarise_step
from rollout.monitor import Monitor, MonitorError
from rollout.run_dir import RunDir
from tests.rollout.some_trajectories import trajectory
from tests.rollout.wandb_file import read_wandb_file

OFF = MonitorConfig(wandb="off", project="test", name=None, trace_every=0)
OFFLINE = MonitorConfig(wandb="offline", project="test", name="a name", trace_every=0)
STEPS = [
    summarise_step([trajectory(0.0, PhaseSeconds(decode=1.0 + s))], s, s, KVBytes(written=s))
    for s in range(3)
]
JOB = summarise_job(STEPS, job="train", seed=0, timing_s={"train": 2.0}, versions={})

KILLED = """
import os, signal, sys
from rollout.config import MonitorConfig
from rollout.monitor import Monitor
from rollout.run_dir import RunDir
with RunDir.open(sys.argv[1], overwrite=False) as run_dir:
    with Monitor.open(run_dir, MonitorConfig("off", "test", None, 0), {}) as monitor:
        monitor.log({"rollout/jct_s": 1.5}, step=0)
        os.kill(os.getpid(), signal.SIGKILL)
"""

ONLINE = """
import sys
from rollout.config import MonitorConfig
from rollout.monitor import Monitor, MonitorError
from rollout.run_dir import RunDir
try:
    Monitor.open(RunDir.open(sys.argv[1], overwrite=False), MonitorConfig("online", "t", None, 0), {})
except MonitorError as error:
    print(error)
"""


@pytest.fixture
def run_dir(tmp_path) -> Iterator[RunDir]:
    with RunDir.open(tmp_path / "run", overwrite=False) as opened:
        yield opened


def lines(run_dir: RunDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]


def wandb_cores() -> list[int]:
    """Process ids of this process's own W&B services."""
    found = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "wandb-core" in line]


def test_wandb_offline_holds_what_metrics_jsonl_holds(run_dir):
    with Monitor.open(run_dir, OFFLINE, {"seed": 3, "task": {"path": None}}) as monitor:
        for summary in STEPS:
            monitor.log(series(summary), step=summary.step)
            monitor.log({"train/loss": -0.25, "train/grad_norm": 1e-3}, step=summary.step)
        monitor.finish(JOB)
    *rows, last = lines(run_dir)
    found = read_wandb_file(run_dir.path)
    assert found.history == rows
    assert len(rows) == 6
    assert last == job_series(JOB)
    assert last["job/jct_s"] == 6.0
    assert last.items() <= found.summary.items()
    assert found.config == {"seed": 3, "task": {"path": None}}
    assert found.exit_code == 0


def test_each_row_stands_on_the_step_axis_of_its_series(run_dir):
    with Monitor.open(run_dir, OFFLINE, {}) as monitor:
        monitor.log({"rollout/jct_s": 1.0, "kv/written_bytes": 5}, step=4)
        monitor.log({"train/loss": 0.5}, step=4)
        monitor.log({"rollout/jct_s": 2.0, "train/loss": 0.25}, step=5)
    assert [set(row) & {"rollout/step", "train/step"} for row in lines(run_dir)] == [
        {"rollout/step"}, {"train/step"}, {"rollout/step", "train/step"},
    ]  # fmt: skip
    assert lines(run_dir)[1] == {"train/step": 4, "train/loss": 0.5}
    assert read_wandb_file(run_dir.path).step_axes == {
        "rollout/*": "rollout/step",
        "kv/*": "rollout/step",
        "timing_s/*": "rollout/step",
        "train/*": "train/step",
    }


def test_off_writes_metrics_and_starts_no_wandb(run_dir):
    before = wandb_cores()
    with Monitor.open(run_dir, OFF, {}) as monitor:
        monitor.log(series(STEPS[0]), step=0)
    assert lines(run_dir)[0]["rollout/jct_s"] == 1.0
    assert not run_dir.wandb.exists()
    assert wandb_cores() == before


def test_a_line_is_there_as_soon_as_log_returns(run_dir):
    with Monitor.open(run_dir, OFF, {}) as monitor:
        monitor.log({"rollout/jct_s": 1.0}, step=0)
        assert len(lines(run_dir)) == 1
        monitor.log({"rollout/jct_s": 1.0}, step=1)
        assert len(lines(run_dir)) == 2


def test_a_killed_run_keeps_its_lines(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=Path(__file__).parents[2], timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "rollout/step": 0, "rollout/jct_s": 1.5,
    }  # fmt: skip


def test_a_resumed_run_adds_to_the_lines_that_are_there(run_dir):
    for step in (0, 1):
        with Monitor.open(run_dir, OFF, {}) as monitor:
            monitor.log({"rollout/jct_s": 1.0}, step=step)
    assert [row["rollout/step"] for row in lines(run_dir)] == [0, 1]


def test_not_a_number_is_null_in_json(run_dir):
    with Monitor.open(run_dir, OFF, {}) as monitor:
        monitor.log({"train/loss": math.nan, "train/grad_norm": math.inf}, step=0)
    assert lines(run_dir) == [{"train/step": 0, "train/loss": None, "train/grad_norm": None}]


def test_wandb_dying_midway_is_one_warning_and_the_job_goes_on(run_dir, caplog):
    with caplog.at_level(logging.WARNING), Monitor.open(run_dir, OFFLINE, {}) as monitor:
        monitor.log({"rollout/jct_s": 1.0}, step=0)
        for pid in wandb_cores():
            os.kill(pid, signal.SIGKILL)
        for step in range(1, 200):
            monitor.log({"rollout/jct_s": 1.0}, step=step)
        monitor.finish(JOB)
    assert len(lines(run_dir)) == 201
    warnings = [r.getMessage() for r in caplog.records if r.name == "rollout.monitor"]
    assert len(warnings) == 1
    assert "W&B failed" in warnings[0]


def test_a_later_run_in_a_process_whose_wandb_died_has_wandb_again(tmp_path):
    for name, dies in (("first", True), ("second", False)):
        run_dir = RunDir.open(tmp_path / name, overwrite=False)
        with run_dir, Monitor.open(run_dir, OFFLINE, {}) as monitor:
            monitor.log({"rollout/jct_s": 1.0}, step=0)
            for pid in wandb_cores() if dies else []:
                os.kill(pid, signal.SIGKILL)
    assert len(read_wandb_file(tmp_path / "second").history) == 1


def test_an_error_in_the_job_is_told_to_wandb_and_passes_through(run_dir):
    with pytest.raises(ZeroDivisionError), Monitor.open(run_dir, OFFLINE, {}) as monitor:
        monitor.log({"rollout/jct_s": 1 / 0}, step=0)
    assert read_wandb_file(run_dir.path).exit_code == 1


def test_wandb_that_cannot_start_is_one_line_that_says_what_to_do(run_dir):
    run_dir.wandb.write_text("a file where W&B wants a folder")
    with pytest.raises(MonitorError) as caught:
        Monitor.open(run_dir, OFFLINE, {})
    message = str(caught.value)
    assert "\n" not in message
    assert "W&B does not start" in message
    assert "monitor=off" in message
    assert isinstance(caught.value, UserError)


def test_online_without_an_account_is_one_line_that_says_what_to_do(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    ended = subprocess.run(
        [sys.executable, "-c", ONLINE, str(tmp_path / "run")],
        cwd=Path(__file__).parents[2], env=env | {"HOME": str(tmp_path)}, timeout=60, check=True,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stdout.count("\n") == 1
    assert "W&B does not start (No API key" in ended.stdout
    assert "monitor=wandb_offline" in ended.stdout


def test_a_full_disk_is_one_line_that_names_the_file(run_dir):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Monitor.open(run_dir, OFF, {}) as monitor:
        monitor.log({"rollout/jct_s": 1.0}, step=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        try:
            with pytest.raises(MonitorError, match="File too large"):
                monitor.log({f"rollout/series_{i}": 0.5 for i in range(1000)}, step=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "rollout/jct_s" in run_dir.metrics.read_text().splitlines()[0]

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from rollout import load_config
from rollout.bench.ladder import BASIC, LADDER, Step
from rollout.bench.one_replay import RunFailed, Runner, end_marked


def test_every_step_of_the_ladder_is_a_configuration() -> None:
    configs = [load_config(["job=replay", *step.overrides]) for step in LADDER]
    assert [config.engines.oracle for config in configs] == [False] * 5 + [True]
    assert [config.scheduler.read_plan for config in configs[1:5]] == ["basic", "alternate", "dual", "split"]


@pytest.mark.ray
def test_a_run_that_cannot_start_fails_with_its_own_line(tmp_path: Path) -> None:
    with Runner(tmp_path, 60.0, lambda text: None) as runner:
        for trace in ("no/such/trace", "nor/this"):  # the second in the process that met the first
            with pytest.raises(RunFailed, match=f"code 2.*{trace}"):
                runner.run(BASIC, (f"trace={trace}",), 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_run_that_passes_its_deadline_is_stopped(tmp_path: Path) -> None:
    with (
        Runner(tmp_path, 3.0, lambda text: None) as runner,
        pytest.raises(RunFailed, match="not done after 3 s"),
    ):
        runner.run(Step("slow", ()), ("num_agents=2",), 1.0)
    assert list(tmp_path.iterdir()) == []


def test_processes_of_a_run_are_found_by_their_mark() -> None:
    mark = uuid.uuid4().hex
    sleeping = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    env = os.environ | {"ROLLOUT_BENCH_RUN": mark}
    with subprocess.Popen(sleeping, env=env, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert end_marked("another mark") == 0
        assert end_marked(mark) == 1
        assert process.wait(10) < 0

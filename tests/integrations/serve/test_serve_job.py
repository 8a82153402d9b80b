"""`python -m rollout job=serve` as a user runs it."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed (pip install 'dualpath-rollout[serve]')")
pytest.importorskip("openai", reason="openai is not installed (pip install 'dualpath-rollout[serve-test]')")

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai

from rollout.__main__ import main
from rollout.records import read_trajectories
from tests.integrations.serve.conftest import OVERRIDES

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_job_serves_until_it_is_stopped_and_leaves_its_records(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = [*OVERRIDES, f"model.path={tiny_model_dir}", f"run_dir={run_dir}"]
    with subprocess.Popen(
        [sys.executable, "-m", "rollout", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        try:
            assert job.stderr is not None
            heard = []
            for line in job.stderr:
                heard.append(line)
                if found := re.search(r"serving taught at (http://\S+)/v1;", line):
                    break
            else:
                pytest.fail("".join(heard))
            for name in ("ended", "left-open"):
                client = openai.OpenAI(base_url=f"{found[1]}/sessions/{name}/v1", api_key="none", timeout=60)
                client.chat.completions.create(
                    model="taught", messages=[{"role": "user", "content": "Hello."}], max_tokens=4
                )
            client.post(f"{found[1]}/sessions/ended/end", body={"reward": 1.0}, cast_to=object)
            job.send_signal(signal.SIGTERM)
            stdout, stderr = job.communicate(timeout=60)
        finally:
            job.kill()
    assert job.returncode == 0, stderr
    assert "JCT" in stdout
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["job"], summary["num_trajectories"], summary["num_turns"]) == ("serve", 2, 2)
    ended, left_open = read_trajectories(run_dir / "trajectories.parquet", 0)
    assert (ended.task_id, ended.reward, ended.outcome) == ("ended", 1.0, "completed")
    assert (left_open.task_id, left_open.stop_reason) == ("left-open", "aborted")


def test_a_port_in_use_is_told_before_anything_starts(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        overrides = [
            *OVERRIDES,
            f"model.path={tiny_model_dir}",
            f"run_dir={tmp_path / 'run'}",
            f"serve.port={port}",
        ]
        assert main([o for o in overrides if o != "serve.port=0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"serve.port={port}" in line
    assert "in use" in line
    assert not (tmp_path / "run").exists()

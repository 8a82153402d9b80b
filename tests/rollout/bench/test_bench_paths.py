"""The scripts as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


def call(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_quick_study_is_measured_written_and_drawn(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = call("bench_paths", "--quick", "--only", "one_agent", "--json", out, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(out.read_text())
    (figure,) = answer["figures"]
    assert figure["name"] == "control_one_agent_basic_over_split"
    assert 0.2 < figure["value"] < 5
    assert figure["ok"] is None
    assert "CPU" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    drawn = call("plot_paths", out, tmp_path / "plots")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "plots" / "control_one_agent-ladder.png").exists()


def test_a_study_that_is_not_known_is_named_in_one_line() -> None:
    done = call("bench_paths", "--only", "speed")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --only speed is no study; known: steady, ")


def test_a_file_that_is_no_benchmark_s_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    done = call("plot_paths", tmp_path / "other.json", tmp_path)
    assert done.returncode == 2
    assert "give a file that scripts/bench_paths wrote" in done.stderr

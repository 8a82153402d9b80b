"""A short run of scripts/chaos from a fixed seed: faults of some kinds, nothing lost, doubled or wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
SCRIPT = Path(__file__).parent.parent.parent.parent / "scripts" / "chaos"


def test_a_job_survives_faults_of_many_kinds_and_loses_doubles_and_forges_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--seed=3", f"--json={out}"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {figure["name"]: figure["value"] for figure in json.loads(out.read_text())["figures"]}
    assert figures["trajectories/expected"] == figures["trajectories/returned"] > 0
    assert figures["trajectories/lost"] == figures["trajectories/duplicated"] == 0
    assert figures["trajectories/wrong"] == figures["unfinished"] == 0
    assert sum(value for name, value in figures.items() if name.startswith("faults/")) >= 2
    assert figures["tokens_checked"] > 0

"""Faults in the middle of a replay, each in its cheapest form, through the script that makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "chaos_replay"


FAULTS = ("decode_killed", "store_stalled", "peer_stopped")


def test_a_replay_survives_each_fault_and_every_trajectory_is_complete_exactly_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--quick",
            *(f"--only={fault}" for fault in FAULTS),
            f"--json={tmp_path / 'out.json'}",
            "scheduler.heartbeat_s=0.5",
            "scheduler.heartbeat_deadline_s=4",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {f["name"]: f["value"] for f in json.loads((tmp_path / "out.json").read_text())["figures"]}
    for fault in FAULTS:
        assert figures[f"{fault}/wrong"] == 0
        assert figures[f"{fault}/retried_turns"] > 0
        assert figures[f"{fault}/verified"] > 0
        assert figures[f"{fault}/recovery"] > 0
    assert done.stdout.count("recovered in") == len(FAULTS)

"""Engines in two plain processes over RDMA, also with host-device copies by it: the same tokens as over
shared memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240


@pytest.mark.rdma(alone=True)
@pytest.mark.slow
def test_tokens_are_the_same_over_verbs_between_two_processes_as_over_shared_memory() -> None:
    command = [sys.executable, "-m", "tests.engines.two_processes", "shm", "verbs", "verbs+cnic"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])  # a library may warn on the lines before
    shm, verbs, looped = said["shm"], said["verbs"], said["verbs+cnic"]
    assert verbs["turns"] == shm["turns"] == looped["turns"]
    assert [bool(turn["hit_tokens"]) for turn in verbs["turns"]] == [False, True, True, True]
    assert all(turn["token_ids"] for turn in verbs["turns"])
    assert not any(shm["packets"].values())
    if verbs["packets"]:  # soft-RoCE's own counters
        assert min(verbs["packets"].values()) > 0
        assert looped["packets"]["sent_pkts"] > verbs["packets"]["sent_pkts"]

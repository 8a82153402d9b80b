"""Tests marked `rdma`, seen from the pytest that hands them to the guest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.tools.rdma_vm.image import CACHE_VARIABLE
from tests.rdma_tests import Outcome, has_devices, read_outcomes

ROOT = Path(__file__).parents[1]
DEADLINE_S = 120
MARKED = "tests/kvstore/tools/test_rdma_guest.py"


@pytest.mark.skipif(has_devices(), reason="they run here")
def test_without_a_guest_they_are_skipped_and_the_summary_says_why(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", MARKED],
        cwd=ROOT,
        env=os.environ | {CACHE_VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 tests NOT RUN" in done.stdout
    assert "scripts/rdma_vm setup" in done.stdout
    assert "2 skipped" in done.stdout.splitlines()[-1]


def test_what_became_of_a_test_is_its_last_line_and_half_a_line_is_none(tmp_path):
    lines = [
        {"name": "test_a", "word": "passed", "text": ""},
        {"name": "test_b", "word": "skipped", "text": "why"},
        {"name": "test_a", "word": "failed", "text": "its teardown"},
    ]
    half = '{"name": "test_c", "word": "pas'
    (tmp_path / "outcomes").write_text("".join(json.dumps(line) + "\n" for line in lines) + half)
    assert read_outcomes(tmp_path / "outcomes") == {
        "test_a": Outcome("failed", "its teardown"),
        "test_b": Outcome("skipped", "why"),
    }
    assert read_outcomes(tmp_path / "none") == {}

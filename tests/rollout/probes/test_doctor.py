"""`job=doctor` as a person meets it: a line for everything, what to do, a JSON, an exit code."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kvstore.probes.finding import Verdict
from rollout.compose import load_config
from rollout.probes.doctor import probes
from rollout.probes.isolation import probe_isolation
from rollout.probes.packages import probe_packages
from rollout.probes.ray_host import probe_ray
from rollout.probes.settings import probe_settings

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120
SUBJECTS = {"RDMA", "GPU", "O_DIRECT", "io_uring", "disk", "loopback", "Ray", "packages", "sandbox", "store"}


def doctor(folder, *overrides):
    return subprocess.run(
        [sys.executable, "-m", "rollout", "job=doctor", *overrides],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_everything_is_told_and_written_and_the_exit_code_says_if_it_will_do(tmp_path):
    done = doctor(tmp_path, "run_dir=here")
    assert done.stderr == ""
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    findings = summary["findings"]
    assert {finding["subject"] for finding in findings} >= SUBJECTS
    counts = Counter(finding["verdict"] for finding in findings)
    assert summary["counts"] == {verdict.value: counts[verdict.value] for verdict in Verdict}
    assert done.returncode == (1 if summary["counts"]["FAIL"] else 0)
    for finding in findings:
        assert finding["told"]
        assert bool(finding["advice"]) == (finding["verdict"] != "OK"), finding
        assert finding["subject"] in done.stdout
    assert summary["job"] == "doctor"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_what_cannot_work_fails_and_gives_exit_code_1(tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor(tmp_path, "run_dir=file", "kvstore.staging_bytes=1000000000000000")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "kvstore.staging_bytes" in done.stdout
    assert "run_dir" in done.stdout.split("FAIL")[-2]


def test_each_probe_has_a_name_of_its_own():
    names = [probe.subject for probe in probes(load_config(["job=doctor"]))]
    assert len(names) == len(set(names))


def test_a_job_that_would_stop_is_told_with_its_line():
    (finding,) = probe_settings(load_config(["model.path=/no/such/model"]))
    assert finding.verdict is Verdict.WARN
    assert "/no/such/model" in finding.told


def test_the_packages_that_run_these_tests_are_all_there():
    (finding,) = probe_packages()
    assert finding.verdict is Verdict.OK
    assert "torch 2" in finding.told


def test_a_ray_of_its_own_needs_shared_memory_and_a_folder():
    assert [finding.subject for finding in probe_ray(load_config())] == ["shared memory", "Ray"]


def test_means_of_isolation_are_tried_not_guessed(monkeypatch, tmp_path):
    (finding,) = probe_isolation()
    assert "bubblewrap" in finding.told
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'no permission' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = probe_isolation()
    assert finding.verdict is Verdict.WARN
    assert "bubblewrap fails (no permission)" in finding.told
    assert "bubblewrap" in finding.advice


@pytest.mark.ray
def test_a_cluster_that_is_not_there_cannot_be_joined():
    from rollout.errors import UserError

    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 cannot be joined"):
        probe_ray(load_config(["ray.address=127.0.0.1:1"]))

"""`python -m rollout` as a person meets it: light for an answer, one clear line, nothing half-started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.__main__ import main

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "transformers", "deepspeed", "wandb")
DEADLINE_S = 60

# Runs a statement, then says on standard error which heavy modules it loaded.
SPY = """
import sys
try:
    {statement}
finally:
    print("loaded:", *(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def loaded_by(statement: str, cwd: Path) -> list[str]:
    done = run_python("-c", SPY.format(statement=statement, heavy=HEAVY), cwd=cwd)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("loaded:"), done.stderr
    return line.split()[1:]


@pytest.mark.parametrize(
    "statement",
    [
        "import rollout",
        "import rollout; rollout.load_config(['seed=1'])",
        "import rollout; rollout.Trajectory, rollout.StopReason, rollout.SamplingParams, rollout.RunConfig",
        "from rollout.__main__ import main; main(['--help'])",
        "from rollout.__main__ import main; main(['--cfg', 'job'])",
        "from rollout.__main__ import main; main(['seed=x'])",
    ],
)
def test_nothing_heavy_is_loaded_by(statement, tmp_path):
    assert loaded_by(statement, tmp_path) == []


def test_the_spy_sees_a_heavy_import(tmp_path):
    assert "torch" in loaded_by("import torch", tmp_path)


def test_help_names_every_group_with_its_choices(tmp_path):
    text = run_python("-m", "rollout", "--help", cwd=tmp_path).stdout
    for choice in (
        "ssd",
        "smoke | tiny_rl",
        "wandb_offline | wandb_online",
        "doctor | plan | replay | rollout | serve | simulate | train",
    ):
        assert choice in text


def test_cfg_prints_the_overridden_configuration(tmp_path):
    done = run_python("-m", "rollout", "--cfg", "job", "task.group_size=7", cwd=tmp_path)
    assert done.returncode == 0
    assert "  group_size: 7\n" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task.grop_size=3"], ["task.grop_size", "task.group_size"]),
        (["seed=soon"], ["seed", "soon", "integer"]),
        (["job=sleep"], ["job=sleep", "doctor, plan, replay, rollout, serve, simulate, train"]),
        (["kvstore=tape"], ["kvstore=tape", "ssd"]),
        (["task.group_size"], ["task.group_size", "key=value"]),
        (["--frobnicate"], ["--frobnicate", "--help"]),
        (["--cfg", "everything"], ["everything", "job"]),
        (["--cfg", "job", "seed=-1"], ["seed", ">= 0", "-1"]),
        (["job=replay", "model_profile=null"], ["model_profile=null", "dsv32_660b, hf, qwen25_32b"]),
        (["job=replay", "scheduler.decision_log=no/where"], ["scheduler.decision_log=no/where", "folder"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_starts_nothing(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("rollout: error: ")
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []

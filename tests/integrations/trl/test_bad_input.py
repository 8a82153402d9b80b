"""What the backend cannot serve TRL's trainer with is told in one line, before anything is played."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rollout
from rollout.char_model import make_char_model
from rollout.errors import RolloutError, UserError
from rollout.integrations.trl import rollout_func, task_reward

pytest.importorskip("trl", reason="TRL is not installed (pip install 'dualpath-rollout[trl]')")

PROMPT = "Q1+1?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("char-model")
    make_char_model(folder, seed=0)
    return folder


@pytest.fixture
def backend(model: Path, tmp_path: Path) -> rollout.RolloutBackend:
    """One that does not run: what is refused is refused before it is used."""
    overrides = ["job=rollout", f"model.path={model}", f"run_dir={tmp_path}", "task.group_size=4"]
    return rollout.RolloutBackend(rollout.load_config(overrides))


@pytest.fixture
def trainer(model: Path, tmp_path: Path) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    return GRPOTrainer(
        model=str(model),
        args=GRPOConfig(output_dir=str(tmp_path), num_generations=8, bf16=False, report_to="none"),
        reward_funcs=task_reward,
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "answer": "2"}]),
    )


def no_peft(trainer: Any) -> None:
    trainer.model.peft_config = {}


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (lambda trainer: setattr(trainer, "temperature", 0.7), "must be the trainer's temperature=0.7"),
    (
        lambda trainer: setattr(trainer, "num_generations_eval", 6),
        "must divide the trainer's num_generations, 6 and 8; set task.group_size=2",
    ),
    (lambda trainer: setattr(trainer, "use_vllm", True), "set use_vllm=False"),
    (lambda trainer: setattr(trainer, "tools", [print]), "give GRPOTrainer no tools"),
    (no_peft, "train without peft_config"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_setting_that_does_not_fit_is_named(
    change: Callable[[Any], None], message: str, backend: rollout.RolloutBackend, trainer: Any
) -> None:
    change(trainer)
    with pytest.raises(UserError, match=message) as raised:
        rollout_func(backend)([PROMPT], trainer)
    assert "\n" not in str(raised.value)


def test_a_backend_that_does_not_run_is_refused_at_once(
    backend: rollout.RolloutBackend, trainer: Any
) -> None:
    with pytest.raises(RolloutError, match="use it inside `with RolloutBackend"):
        rollout_func(backend)([PROMPT], trainer)


def test_rank_0_needs_a_backend(trainer: Any) -> None:
    with pytest.raises(UserError, match="on rank 0, whose backend it needs"):
        rollout_func(None)([PROMPT], trainer)


@pytest.mark.parametrize("found", ["1.15.0", "1.17.0"])
def test_another_version_of_trl_is_refused_with_those_that_were_tested(
    found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / f"trl-{found}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trl\nVersion: {found}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=f"TRL {found} is outside .*>=1.16.*, which was tested; pip install"):
        rollout_func(None)


def test_without_trl_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"TRL is not installed; pip install 'dualpath-rollout\[trl\]'"):
        rollout_func(None)

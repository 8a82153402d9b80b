"""GRPO steps of the released TRL, trained by DeepSpeed or without, and played by this backend."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from rollout.chain_arithmetic import ALPHABET, make_tasks
from rollout.char_model import make_char_model
from tests.integrations.trl.ranks import ROOT, run_ranks

pytest.importorskip("trl", reason="TRL is not installed (pip install 'dualpath-rollout[trl]')")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
DEADLINE_S = 600
TOLERANCE = 1e-4
PATIENCE = (
    "engines.start_deadline_s=600",
    "engines.step_deadline_s=120",
    "scheduler.heartbeat_deadline_s=60",
    "scheduler.place_deadline_s=120",
    "task.turn_deadline_s=180",
    "task.wall_time_s=240",
)
"""A busy host is no failure."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("char-model")
    make_char_model(folder, seed=0)
    return folder


def run_job(
    folder: Path,
    model: Path,
    *,
    ranks: int,
    zero_stage: int | None,
    num_generations: int,
    trainings_after: int = 0,
    **args: Any,
) -> list[dict[str, Any]]:
    """What every rank noted."""
    job = {
        "model": str(model),
        "zero_stage": zero_stage,
        "trainings_after": trainings_after,
        "tasks": [
            {"prompt": task.prompt, "environment": "tests.integrations.trl.coins:Coins"}
            for task in make_tasks(seed=0, num_tasks=8)
        ],
        "args": {"num_generations": num_generations, **args},
        "overrides": [
            "experiment=smoke",
            "job=rollout",
            f"model.path={model}",
            f"run_dir={folder / 'run'}",
            "ray.agent_workers=1",
            f"task.group_size={num_generations}",
            "task.max_context_tokens=128",
            "sampling.max_tokens=8",
            "kvstore.block_tokens=8",
            *PATIENCE,
        ],
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = ["-m", "tests.integrations.trl.grpo_job", str(folder)]
    run_ranks(ranks, command, cwd=ROOT, logs=folder, deadline_s=DEADLINE_S)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One rank, for as many steps as a reward needs to move."""
    (rank,) = run_job(
        tmp_path_factory.mktemp("alone"),
        model,
        ranks=1,
        zero_stage=1,
        num_generations=8,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        max_steps=10,
        learning_rate=2e-3,
    )
    return rank


@pytest.fixture(scope="module")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two ranks under ZeRO-3; the second of three groups lies half on each."""
    return run_job(
        tmp_path_factory.mktemp("pair"),
        model,
        ranks=2,
        zero_stage=3,
        num_generations=4,
        per_device_train_batch_size=6,
        per_device_eval_batch_size=4,
        max_steps=2,
        learning_rate=2e-3,
    )


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Without DeepSpeed, whose engine is gone after one training: three trainings of one step."""
    (rank,) = run_job(
        tmp_path_factory.mktemp("plain"),
        model,
        ranks=1,
        zero_stage=None,
        num_generations=4,
        trainings_after=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        max_steps=1,
        learning_rate=2e-3,
    )
    return rank


def test_deepspeed_trains_and_zero_3_has_cut_the_weights_up(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    assert [rank["zero_stage"] for rank in (alone, *pair)] == [1, 3, 3]
    assert all(rank["weights_at_hand"] < alone["weights_at_hand"] / 10 for rank in pair)


def calls_of(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [call for rank in ranks for call in rank["calls"]]


def test_the_reward_moves(alone: dict[str, Any]) -> None:
    rewards = [logged["reward"] for logged in alone["log"]]
    assert len(rewards) == 10
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.1, rewards


def test_a_step_changes_the_engines_weights_to_the_trainers(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    for call in calls_of([alone, *pair]):
        assert max(call["off_by"]) < TOLERANCE
        if call["step"] > 0:
            assert max(call["first_off_by"]) > 100 * TOLERANCE


def test_weights_are_pushed_once_for_each_step(alone: dict[str, Any], pair: list[dict[str, Any]]) -> None:
    """Two evaluations after the last step share one push."""
    for rank, steps in ((alone, 10), (pair[0], 2)):
        assert [call["step"] for call in rank["calls"]] == [*range(steps), steps, steps]
        assert rank["version"] == steps + 1
        assert rank["evaluated"]["eval_reward"] > 0


def test_a_training_that_begins_again_pushes_what_it_begins_with(plain: dict[str, Any]) -> None:
    after = plain["after"]
    assert plain["zero_stage"] is None
    assert [call["step"] for call in plain["calls"] + after["calls"]] == [0, 1, 1, 0, 0]
    assert after["version"] == plain["version"] + 2
    assert all(max(call["off_by"]) < TOLERANCE for call in after["calls"])


def test_rows_are_those_of_the_ranks_own_prompts(alone: dict[str, Any], pair: list[dict[str, Any]]) -> None:
    alphabet = {character: place for place, character in enumerate(ALPHABET)}
    for call in calls_of([alone, *pair]):
        asked = [[alphabet[character] for character in prompt] for prompt in call["prompts"]]
        assert call["prompt_ids"] == asked


def test_all_ranks_prompts_are_one_batch(pair: list[dict[str, Any]]) -> None:
    first, second = (rank["calls"][0] for rank in pair)
    assert [first["prompts"].count(prompt) for prompt in dict.fromkeys(first["prompts"])] == [4, 2]
    assert [second["prompts"].count(prompt) for prompt in dict.fromkeys(second["prompts"])] == [2, 4]
    assert first["prompts"][-1] == second["prompts"][0]
    assert first["rollout_figures"] == second["rollout_figures"]


def test_what_a_tool_said_is_in_the_row_and_masked(alone: dict[str, Any]) -> None:
    for call in alone["calls"]:
        for ids, mask, logprobs in zip(
            call["completion_ids"], call["env_mask"], call["logprobs"], strict=True
        ):
            assert len(ids) == len(mask) == len(logprobs)
            assert mask[0] == mask[-1] == 1
            said = "".join(ALPHABET[i] for i, own in zip(ids, mask, strict=True) if not own)
            assert re.fullmatch(r";?R\d;", said), said


def test_the_tasks_rewards_and_the_backends_figures_reach_the_trainer(alone: dict[str, Any]) -> None:
    for call, logged in zip(alone["calls"], alone["log"], strict=False):
        assert logged["reward"] == pytest.approx(fmean(call["rollout_reward"]))
        assert logged["rollout/jct_s"] > 0
        assert logged["rollout/turns_mean"] == 2
        assert logged["rollout/failed"] == 0


def test_when_the_backend_is_gone_every_rank_is_told(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    for rank in (alone, *pair):
        assert "the backend does not run" in rank["told_after_close"]

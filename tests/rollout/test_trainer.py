from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel

from rollout.batch import make_rows
from rollout.checkpoint import CheckpointNote, set_latest, write_note
from rollout.errors import UserError
from rollout.train_metrics import TrainMetrics
from rollout.trainer import TrainerRank
from rollout.trainer_config import TrainerConfig
from rollout.types import StopReason, Trajectory
from tests.rollout.training import (
    Ranks,
    make_trajectory,
    random_trajectories,
    running_ranks,
    tiny_qwen3,
    trainer_config,
)

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def untrained(model_path: Path) -> Iterator[Ranks]:
    """A rank that tests share and leave as it is."""
    with running_ranks(trainer_config(), model_path) as trainer:
        yield trainer


@pytest.fixture(autouse=True)
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch would put what it compiles at run time."""
    folder = tmp_path / "extensions"
    folder.mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    return folder


def sampled_logprobs(model: PreTrainedModel, trajectory: Trajectory) -> torch.Tensor:
    """One unpadded row through the whole model."""
    (segment,) = trajectory.segments
    token_ids = torch.tensor([list(segment.token_ids)])
    logits = model(input_ids=token_ids).logits[0, :-1] / TEMPERATURE
    chosen = torch.log_softmax(logits, -1)[range(len(segment) - 1), token_ids[0, 1:]]
    return chosen[torch.tensor(segment.loss_mask[1:]) == 1]


class Reference:
    """GRPO in plain torch, one process, row by row; on-policy, so the ratio is 1 and never clipped."""

    def __init__(self, model_path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01
        )

    def step(self, trajectories: list[Trajectory]) -> dict[str, float]:
        """The figures of a step; std-normalised advantages within each group."""
        logprobs = [sampled_logprobs(self.model, trajectory) for trajectory in trajectories]
        terms = []
        for trajectory, logprobs_N in zip(trajectories, logprobs, strict=True):
            group = torch.tensor(
                [other.reward for other in trajectories if other.group_id == trajectory.group_id]
            )
            advantage = (trajectory.reward - group.mean()) / (group.std() + 1e-4)
            terms.append((advantage * (logprobs_N - logprobs_N.detach()).exp()).sum())
        loss = -torch.stack(terms).sum() / sum(len(logprobs_N) for logprobs_N in logprobs)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)
        self.optimizer.step()
        sampled_with = [torch.tensor([p for p in one.segments[0].logprobs if p]) for one in trajectories]
        difference_N = (torch.cat(logprobs) - torch.cat(sampled_with)).detach()
        return {
            "train/loss": loss.item(),
            "train/grad_norm": norm.item(),
            "train/logprob_diff/mean": difference_N.abs().mean().item(),
            "train/logprob_diff/max": difference_N.abs().max().item(),
            "train/importance_ratio/mean": difference_N.exp().mean().item(),
            "train/importance_ratio/max": difference_N.exp().max().item(),
            "train/num_loss_tokens": len(difference_N),
            "train/reward_mean": sum(one.reward for one in trajectories) / len(trajectories),
        }

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach() for name, weight in self.model.named_parameters()}


def assert_same_weights(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], atol: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=atol, rtol=0)


def only_metrics(answers: Iterable[object]) -> TrainMetrics:
    """Those of rank 0, after checking that the ranks agree on all but their time."""
    first, *others = [answer for answer in answers if isinstance(answer, TrainMetrics)]
    for other in others:
        assert other.as_dict() | {"train/step_s": 0} == first.as_dict() | {"train/step_s": 0}
    return first


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (1, 3), (2, 3)])
def test_two_steps_equal_plain_torch_and_nothing_is_compiled(
    ranks: int, zero_stage: int, model_path: Path, extensions: Path
) -> None:
    reference = Reference(model_path)
    config = trainer_config(ranks=ranks, zero_stage=zero_stage)
    with running_ranks(config, model_path) as trainer:
        for seed in (1, 2):
            trajectories = random_trajectories(seed)
            want = reference.step(trajectories)
            metrics = only_metrics(trainer.call("train_step", trajectories, TEMPERATURE)).as_dict()
            assert {name: metrics[name] for name in want} == pytest.approx(want, rel=1e-3, abs=1e-6)
        assert_same_weights(trainer.weights(), reference.weights(), atol=1e-5)
    assert not any(extensions.iterdir())


def test_a_checkpoint_goes_on_where_the_run_would_have(model_path: Path, tmp_path: Path) -> None:
    config = trainer_config(ranks=2, zero_stage=3)
    folder = str(tmp_path / "checkpoints")
    with running_ranks(config, model_path) as trainer:
        trainer.call("train_step", random_trajectories(1), TEMPERATURE)
        trainer.call("save_checkpoint", folder, 1, 5)
        saved = trainer.weights()
        trainer.call("train_step", random_trajectories(2), TEMPERATURE)
        uninterrupted = trainer.weights()
    with running_ranks(config, model_path) as trainer:
        assert trainer.call("load_checkpoint", folder) == [(1, 5), (1, 5)]
        assert_same_weights(trainer.weights(), saved, atol=0)
        trainer.call("train_step", random_trajectories(2), TEMPERATURE)
        assert_same_weights(trainer.weights(), uninterrupted, atol=1e-7)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints/step-000001/model")
    assert_same_weights(dict(exported.named_parameters()), saved, atol=0)


def test_where_every_advantage_is_zero_the_weights_stay(untrained: Ranks) -> None:
    agreeing = random_trajectories(1)[6:]
    before = untrained.weights()
    metrics = only_metrics(untrained.call("train_step", agreeing, TEMPERATURE))
    assert_same_weights(untrained.weights(), before, atol=0)
    assert (metrics.num_optimizer_steps, metrics.reward_mean) == (0, 1.0)
    assert 0 < metrics.logprob_diff_mean < 1


def test_skipping_rows_without_advantage_changes_no_weight(model_path: Path) -> None:
    trajectories, reference = random_trajectories(1), Reference(model_path)
    reference.step(trajectories)
    with running_ranks(trainer_config(skip_zero_advantage=True), model_path) as trainer:
        trainer.call("train_step", trajectories, TEMPERATURE)
        assert_same_weights(trainer.weights(), reference.weights(), atol=1e-5)


def test_later_epochs_take_the_ratio_against_the_first_one(model_path: Path) -> None:
    config = trainer_config(epochs_per_step=3, learning_rate=3e-2, grad_clip=0.0)
    with running_ranks(config, model_path) as trainer:
        metrics = only_metrics(trainer.call("train_step", random_trajectories(1), TEMPERATURE))
    assert metrics.num_optimizer_steps == 3
    assert 0 < metrics.clip_frac < 1


def test_logprobs_of_rows_come_back_in_their_places(untrained: Ranks, model_path: Path) -> None:
    trajectories = random_trajectories(3)
    rows = make_rows(trajectories, normalise_std=True).rows
    (logprobs,) = untrained.call("logprobs", rows, TEMPERATURE)
    assert isinstance(logprobs, list)
    model = Reference(model_path).model
    for trajectory, row, row_logprobs in zip(trajectories, rows, logprobs, strict=True):
        assert [p != 0 for p in row_logprobs] == [mask == 1 for mask in row.loss_mask]
        found = torch.tensor([p for p in row_logprobs if p])
        torch.testing.assert_close(found, sampled_logprobs(model, trajectory).detach(), atol=1e-5, rtol=0)


def test_bfloat16_weights_leave_as_float32_and_learn(model_path: Path) -> None:
    with running_ranks(trainer_config(dtype="bfloat16"), model_path) as trainer:
        before = trainer.weights()
        metrics = only_metrics(trainer.call("train_step", random_trajectories(1), TEMPERATURE))
        after = trainer.weights()
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert 0 < metrics.grad_norm < math.inf


def test_failed_trajectories_alone_make_an_empty_step(untrained: Ranks) -> None:
    failed = [make_trajectory(1.0, stop_reason=StopReason.TOOL_ERROR)]
    metrics = only_metrics(untrained.call("train_step", failed, TEMPERATURE))
    assert (metrics.num_rows, metrics.skipped_trajectories, metrics.loss) == (0, 1, 0.0)


def test_resuming_without_a_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    rank = TrainerRank(trainer_config(), "m", rank=0, world_size=1, master_port=1, seed=0)
    with pytest.raises(UserError, match="save_every_steps"):
        rank.load_checkpoint(str(tmp_path))


def test_resuming_with_other_ranks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step-000002").mkdir()
    write_note(tmp_path / "step-000002", CheckpointNote(2, 2, ranks=2, zero_stage=3))
    set_latest(tmp_path, "step-000002")
    rank = TrainerRank(trainer_config(), "m", rank=0, world_size=1, master_port=1, seed=0)
    with pytest.raises(UserError, match=r"trainer.ranks=2 trainer.zero_stage=3.*got 1 and 0"):
        rank.load_checkpoint(str(tmp_path))


def test_importing_the_trainer_loads_neither_torch_nor_deepspeed() -> None:
    code = "import sys, rollout.trainer; print(sorted({'torch', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("clip_low", 1.0),
        ("betas", (0.9, 1.0)),
        ("zero_stage", 4),
        ("ranks", 0),
        ("micro_batch_tokens", 0),
        ("collective_deadline_s", math.nan),
    ],
)
def test_a_bad_trainer_value_is_refused_by_name_and_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .* got {re.escape(str(value))}"):
        trainer_config(**{field: value})


def test_the_shipped_trainer_values_are_accepted_and_complete() -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "conf/trainer/grpo.yaml").read_text())
    config = TrainerConfig(**(values | {"betas": tuple(values["betas"])}))
    assert (config.steps, config.ranks, config.learning_rate) == (1, 1, 1e-6)

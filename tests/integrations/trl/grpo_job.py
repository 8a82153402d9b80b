"""One rank of a GRPO job of TRL's with DeepSpeed: what a user's script is, with notes of what it saw.

Its argument is a folder: FOLDER/job.json says what to do; FOLDER/rank-N.json is what rank N notes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import rollout
from rollout.errors import RolloutError
from rollout.integrations.trl import on_first_rank, rollout_func, task_reward


class Notes(TrainerCallback):  # type: ignore[misc]
    """What one rank saw: of each call of the rollout function, and of the trainer's log."""

    def __init__(self, play: Any) -> None:
        self._play = play
        self.calls: list[dict[str, Any]] = []
        self.log: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "reward" in logs:
            self.log.append(logs)

    def rollout(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        columns: dict[str, Any] = self._play(prompts, trainer)
        call: dict[str, Any] = {"step": trainer.state.global_step, "prompts": prompts, **columns}
        call["off_by"] = off_by(trainer.model, columns)
        if self.calls:
            call["first_off_by"] = off_by(trainer.model, self.calls[0])
        self.calls.append(call)
        return columns


def off_by(model: torch.nn.Module, columns: dict[str, Any]) -> list[float]:
    """How far each row's logprobs are from those of the model that is trained, at most."""
    names = ("prompt_ids", "completion_ids", "logprobs", "env_mask")
    return [row_off_by(model, *row) for row in zip(*(columns[name] for name in names), strict=True)]


def row_off_by(
    model: torch.nn.Module, prompt_ids: list[int], ids: list[int], logprobs: list[float], mask: list[int]
) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    models_own = logits.log_softmax(-1)[range(len(ids)), ids]
    return float((models_own - torch.tensor(logprobs))[torch.tensor(mask) == 1].abs().max())


def with_deepspeed(zero_stage: int) -> dict[str, Any]:
    """What a GRPOConfig is given; made before it, as accelerate looks around only once."""
    # Where there is no GPU, accelerate would else count every rank as alone.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    return {
        "deepspeed": {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            # Below the sizes of the tiny model's weights, so that they really are cut up.
            "zero_optimization": {"stage": zero_stage, "stage3_param_persistence_threshold": 100},
        },
        "accelerator_config": {"use_configured_state": True},
    }


def version_of(backend: rollout.RolloutBackend | None) -> int | None:
    return None if backend is None else backend.weights_version


def zero_stage_of(trainer: GRPOTrainer) -> int | None:
    stage: int | None = getattr(trainer.model_wrapped, "zero_optimization_stage", lambda: None)()
    return stage


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    args = GRPOConfig(
        output_dir=str(folder / "trl"),
        **({} if job["zero_stage"] is None else with_deepspeed(job["zero_stage"])),
        bf16=False,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        **job["args"],
    )
    tasks = Dataset.from_list(job["tasks"])
    with on_first_rank(rollout.load_config(job["overrides"])) as backend:
        notes = Notes(rollout_func(backend))
        trainer = GRPOTrainer(
            model=job["model"],
            args=args,
            reward_funcs=task_reward,
            train_dataset=tasks,
            eval_dataset=tasks.select(range(2)),
            rollout_func=notes.rollout,
            callbacks=[notes],
        )
        trainer.train()
        trainer.evaluate()
        evaluated = trainer.evaluate()
        first = {"calls": notes.calls, "log": notes.log, "version": version_of(backend)}
        notes.calls, notes.log = [], []
        trainer.args.max_steps = 1
        for _ in range(job["trainings_after"]):
            trainer.train()
        after = {"calls": notes.calls, "version": version_of(backend)}
    trainer.state.global_step += 1
    try:
        notes.rollout([], trainer)
        told = ""
    except RolloutError as error:
        told = str(error)
    found = {
        **first,
        "after": after,
        "evaluated": evaluated,
        "told_after_close": told,
        "zero_stage": zero_stage_of(trainer),
        "weights_at_hand": sum(weight.numel() for weight in trainer.model.parameters()),
    }
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The backend as a rollout function of TRL's GRPOTrainer, with DeepSpeed or without.

    GRPOTrainer(..., reward_funcs=task_reward, rollout_func=rollout_func(backend))

Every rank calls it with its own prompts. Rank 0 owns the backend: it takes the weights whenever the trainer
has made a step, plays the prompts of all ranks as one batch, so that the scheduler sees the whole job, and
each rank gets the rows of its own prompts. Prompts, tools and rewards are those of the tasks
(rollout.integrations.dataset_tasks); TRL's own tools and engines have no part in it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from math import gcd
from statistics import fmean
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from rollout.backend import RolloutBackend
from rollout.batch import is_usable
from rollout.config import RunConfig
from rollout.errors import RolloutError, UserError
from rollout.integrations.dataset_tasks import DatasetTasks
from rollout.integrations.gathered_weights import gathered_weights
from rollout.integrations.ranks import Ranks
from rollout.integrations.token_rows import TokenRow, pick, token_row
from rollout.tasks import Task
from rollout.types import Trajectory

if TYPE_CHECKING:
    from trl import GRPOTrainer

TESTED = SpecifierSet(">=1.16,<1.17")
"""Versions of TRL that this was tested with. Its rollout function is experimental and may change with any."""
GATHERED_FROM = ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED")
"""How accelerate may have spread the model so that whole weights can be had of it."""


class UnfitTrainer(UserError, ValueError):
    """TRL, or a setting of its trainer, that the backend cannot serve; one line says what to change."""


def on_first_rank(config: RunConfig) -> AbstractContextManager[RolloutBackend | None]:
    """The backend in rank 0 of a launched job; None in the others, whose prompts go to rank 0."""
    return RolloutBackend(config) if os.environ.get("RANK", "0") == "0" else nullcontext()


def rollout_func(backend: RolloutBackend | None) -> Callable[[list[Any], GRPOTrainer], dict[str, Any]]:
    """What `GRPOTrainer(rollout_func=)` takes. `backend` runs for as long as it is called; None where the
    rank is not 0."""
    _check_version()
    return _RolloutFunction(backend)


def task_reward(
    *,
    rollout_reward: list[float | None],
    rollout_figures: list[dict[str, float]],
    log_metric: Callable[[str, float], None],
    **_: object,
) -> list[float | None]:
    """What `GRPOTrainer(reward_funcs=)` takes: the rewards that the tasks gave.

    A trajectory that failed has none, and TRL leaves it out. The step's figures go to the trainer's log.
    """
    for name, value in rollout_figures[0].items():
        log_metric(name, value)
    return rollout_reward


class _RolloutFunction:
    """Called by every rank, in step."""

    def __init__(self, backend: RolloutBackend | None) -> None:
        self._backend = backend
        self._training: object | None = None
        """The state of the training under way: each `train()` makes one, whose steps begin at 0 again."""
        self._pushed_step: int | None = None
        """The step of it whose weights the engines have."""
        self._tasks: dict[bool, DatasetTasks] = {}
        """Of the trainer's training set (True) and of the sets it evaluates on."""

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        ranks = Ranks()
        by_rank = ranks.gather(prompts)
        if trainer.state is not self._training:
            ranks.from_first(lambda: self._check(trainer, ranks.size))
            self._training, self._pushed_step = trainer.state, None
            self._tasks.clear()
        if trainer.state.global_step != self._pushed_step:
            self._push(trainer, ranks)
            self._pushed_step = trainer.state.global_step
        asked = [prompt for own in by_rank for prompt in own]
        rows, figures = ranks.from_first(lambda: self._play(asked, trainer))
        end = sum(map(len, by_rank[: ranks.rank + 1]))
        return _as_columns(rows[end - len(prompts) : end], figures)

    def _push(self, trainer: GRPOTrainer, ranks: Ranks) -> None:
        """The trainer's weights to the engines. All ranks gather to the end, whatever becomes of it."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = gathered_weights(model, is_first=ranks.rank == 0)
        failure: Exception | None = None
        if ranks.rank == 0:
            try:
                backend = self._first_backend()
                backend.update_weights(backend.weights_version + 1, weights)
            except Exception as error:  # noqa: BLE001 - raised below, on all ranks
                failure = error
        for _ in weights:
            """On rank 0, what a failed update left."""
        ranks.from_first(lambda: _raise(failure))

    def _play(self, prompts: Sequence[Any], trainer: GRPOTrainer) -> tuple[list[TokenRow], dict[str, float]]:
        """A row for each prompt, in order. One that stands there several times is played as groups."""
        backend, tasks = self._first_backend(), self._tasks_of(trainer)
        places_of: defaultdict[Task, list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            places_of[tasks.task(prompt)].append(place)
        group_size, oversample = backend.config.task.group_size, backend.config.controller.oversample
        groups = [
            (task, places[start : start + group_size])
            for task, places in places_of.items()
            for start in range(0, len(places), group_size)
        ]
        played = iter(backend.generate([task for task, _ in groups]))
        taken: dict[int, Trajectory] = {}
        for _, places in groups:
            group = list(islice(played, group_size + oversample))
            taken.update(zip(places, pick(group, len(places)), strict=True))
        return _rows(taken, trainer.processing_class.pad_token_id), _figures(list(taken.values()))

    def _tasks_of(self, trainer: GRPOTrainer) -> DatasetTasks:
        training = trainer.model.training
        if training not in self._tasks:
            found = trainer.train_dataset if training else trainer.eval_dataset
            by_name = found if isinstance(found, Mapping) else {"": found}
            datasets = [dataset for dataset in by_name.values() if dataset is not None]
            environment = self._first_backend().config.task.environment
            self._tasks[training] = DatasetTasks(datasets, environment)
        return self._tasks[training]

    def _check(self, trainer: GRPOTrainer, num_ranks: int) -> None:
        _check_trainer(trainer, self._first_backend().config, num_ranks)

    def _first_backend(self) -> RolloutBackend:
        if self._backend is None:
            raise UnfitTrainer("rollout_func(None) was called on rank 0, whose backend it needs")
        return self._backend


def _rows(taken: Mapping[int, Trajectory], blank_id: int) -> list[TokenRow]:
    """Of every place; raises RolloutError where there is nothing to train on."""
    rows = [token_row(taken[place], blank_id) for place in range(len(taken))]
    if all(row.reward is None for row in rows):
        failed = taken[0]
        raise RolloutError(
            f"none of {len(taken)} trajectories can be trained on; {failed.trajectory_id} ended "
            f"{failed.stop_reason}: {failed.error}"
        )
    return rows


def _figures(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What a step's rollout took, for the trainer's log."""
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    first_start_s = min(trajectory.started_s for trajectory in trajectories)
    prompt_tokens = sum(turn.prompt_tokens for turn in turns)
    return {
        "rollout/jct_s": max(trajectory.finished_s for trajectory in trajectories) - first_start_s,
        "rollout/hit_rate": sum(turn.hit_tokens for turn in turns) / prompt_tokens,
        "rollout/turns_mean": len(turns) / len(trajectories),
        "rollout/failed": fmean(not is_usable(trajectory) for trajectory in trajectories),
    }


def _as_columns(rows: Sequence[TokenRow], figures: dict[str, float]) -> dict[str, Any]:
    """As TRL takes them; what it does not know it hands to the reward functions."""
    return {
        "prompt_ids": [row.prompt_ids.tolist() for row in rows],
        "completion_ids": [row.completion_ids.tolist() for row in rows],
        "logprobs": [row.logprobs.tolist() for row in rows],
        "env_mask": [row.sampled.tolist() for row in rows],
        "rollout_reward": [row.reward for row in rows],
        "rollout_figures": figures,
    }


def _check_version() -> None:
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise UnfitTrainer("TRL is not installed; pip install 'dualpath-rollout[trl]'") from None
    if found not in TESTED:
        raise UnfitTrainer(
            f"TRL {found} is outside {TESTED}, which was tested; pip install 'dualpath-rollout[trl]'"
        )


def _check_trainer(trainer: GRPOTrainer, config: RunConfig, num_ranks: int) -> None:
    """Refuse what would train on something else than was sampled."""
    accelerator, group_size = trainer.accelerator, config.task.group_size
    sharding, counted = accelerator.distributed_type.value, accelerator.num_processes
    sizes = {trainer.num_generations, trainer.num_generations_eval}
    refusals = [
        (
            config.sampling.temperature != trainer.temperature,
            f"sampling.temperature={config.sampling.temperature} must be the trainer's "
            f"temperature={trainer.temperature}",
        ),
        (
            gcd(*sizes) % group_size != 0,
            f"task.group_size={group_size} must divide the trainer's num_generations, {_listed(sizes)}; "
            f"set task.group_size={gcd(*sizes)}",
        ),
        (trainer.use_vllm, "use_vllm=True starts engines that play nothing here; set use_vllm=False"),
        (
            bool(trainer.tools),
            "tools of a rollout function are those of its tasks' environments; give GRPOTrainer no tools and "
            "no environment_factory",
        ),
        (
            hasattr(accelerator.unwrap_model(trainer.model), "peft_config"),
            "weights of a PEFT adapter cannot be pushed; train without peft_config",
        ),
        (
            counted != num_ranks,
            f"accelerate counts {counted} of {num_ranks} ranks, as it does with DeepSpeed where there is no "
            'GPU; see "TRL" in docs/decisions.md',
        ),
        (
            sharding not in GATHERED_FROM,
            f"weights under {sharding} cannot be gathered; train in one process, with DDP or with DeepSpeed",
        ),
    ]
    for is_wrong, message in refusals:
        if is_wrong:
            raise UnfitTrainer(message)


def _listed(sizes: set[int]) -> str:
    return " and ".join(map(str, sorted(sizes)))


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error

"""Rollout, GRPO step, push, rollout: the engines sample with the weights the trainer has now."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

import rollout
from rollout.actors import RayCluster
from rollout.async_backend import AsyncRolloutBackend
from rollout.batch import TrainRow
from rollout.tasks import Task
from rollout.trainer_group import TrainerGroup
from rollout.types import NO_VERSION, Trajectory

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TASKS = [Task(f"task-{i}", f"{i} and {i} more. How many?", str(2 * i)) for i in range(2)]
TOLERANCE = 1e-4


def rewarded(trajectories: list[Trajectory]) -> list[Trajectory]:
    """A random model earns nothing; give every second sample of a group a reward so that it learns."""
    return [replace(t, reward=float(t.sample_index % 2)) for t in trajectories]


def rows_of(trajectories: list[Trajectory]) -> list[TrainRow]:
    return [
        TrainRow(s.token_ids, s.loss_mask, s.logprobs, s.weights_versions, 0.0)
        for t in trajectories
        for s in t.segments
    ]


def largest_difference(rows: list[TrainRow], logprobs: list[array[float]]) -> float:
    return max(
        abs(ours - theirs)
        for row, found in zip(rows, logprobs, strict=True)
        for ours, theirs, mask in zip(row.old_logprobs, found, row.loss_mask, strict=True)
        if mask
    )


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 3)])
def test_after_a_push_the_engines_logprobs_are_the_trainers(
    ranks: int, zero_stage: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = rollout.load_config(
        [
            "experiment=smoke",
            f"model.path={tiny_model_dir}",
            f"run_dir={tmp_path / 'run'}",
            "ray.agent_workers=1",
            f"trainer.ranks={ranks}",
            f"trainer.zero_stage={zero_stage}",
            "trainer.threads=1",
            "trainer.learning_rate=0.01",
        ]
    )

    async def run() -> None:
        async with AsyncRolloutBackend(config) as backend:
            ray = RayCluster(None, num_nodes=0, start_deadline_s=60.0)
            try:
                trainer = await TrainerGroup.start(ray.spawn, config.trainer, str(tiny_model_dir), seed=0)
                before = await backend.generate(TASKS)
                rows = rows_of(before)
                assert largest_difference(rows, await trainer.logprobs(rows, 1.0)) < TOLERANCE
                metrics = await trainer.train_step(rewarded(before), 1.0)
                assert metrics.num_optimizer_steps == 1
                assert metrics.logprob_diff_max < TOLERANCE
                assert largest_difference(rows, await trainer.logprobs(rows, 1.0)) > 100 * TOLERANCE
                await backend.update_weights(1, trainer.weights())
                after = await backend.generate(TASKS)
                assert {v for t in after for v in t.segments[0].weights_versions} == {NO_VERSION, 1}
                rows = rows_of(after)
                assert largest_difference(rows, await trainer.logprobs(rows, 1.0)) < TOLERANCE
            finally:
                ray.close()

    asyncio.run(run())

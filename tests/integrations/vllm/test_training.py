"""Engines that run vLLM take the trainer's weights in place; one that comes back has them from another."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from transformers import AutoConfig, AutoModelForCausalLM

from rollout.actors import RayCluster
from rollout.async_backend import AsyncRolloutBackend
from rollout.trainer_group import TrainerGroup
from tests.rollout.test_backend import config_for
from tests.rollout.test_training_loop import TASKS, TOLERANCE, largest_difference, rewarded, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]
START_S = 900
"""A vLLM takes 15 s of a processor to start, and a busy one gives it a tenth."""


@pytest.fixture
def model(tiny_model_dir, tmp_path):
    """With heads as large as vLLM's kernels for CPUs want them."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = AutoConfig.from_pretrained(folder, head_dim=32, initializer_range=0.15)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder


def test_after_a_push_vllms_logprobs_are_the_trainers_and_old_kv_is_not_hit(model, tmp_path):
    config = config_for(
        model,
        tmp_path / "run",
        "engines=vllm",
        f"engines.prefill_hbm_bytes={32 << 20}",
        f"engines.start_deadline_s={START_S}",
        "engines.step_deadline_s=120",
        "kvstore.block_tokens=32",
        "scheduler.heartbeat_deadline_s=30",
        "trainer.threads=1",
        "trainer.learning_rate=0.01",
    )

    async def run() -> None:
        async with AsyncRolloutBackend(config) as backend:
            ray = RayCluster(None, num_nodes=0, start_deadline_s=START_S)
            try:
                trainer = await TrainerGroup.start(ray.spawn, config.trainer, str(model), seed=0)
                before = await backend.generate(TASKS)
                rows = rows_of(before)
                assert largest_difference(rows, await trainer.logprobs(rows, 1.0)) < TOLERANCE
                await trainer.train_step(rewarded(before), 1.0)
                assert largest_difference(rows, await trainer.logprobs(rows, 1.0)) > 100 * TOLERANCE
                await backend.update_weights(1, trainer.weights())
                after = await backend.generate(TASKS)
                # All prompts were played before; whoever comes first finds nothing of what was stored then.
                assert min(trajectory.turns[0].hit_tokens for trajectory in after) == 0
                assert max(trajectory.turns[-1].hit_tokens for trajectory in after) > 0
                await decode_engine_comes_back(backend)
                for trajectories in (after, await backend.generate(TASKS)):
                    rows = rows_of(trajectories)
                    assert {turn.weights_version for each in trajectories for turn in each.turns} == {1}
                    assert largest_difference(rows, await trainer.logprobs(rows, 1.0)) < TOLERANCE
            finally:
                ray.close()

    asyncio.run(run())


async def decode_engine_comes_back(backend: AsyncRolloutBackend) -> None:
    """It is killed; what it begins anew has the model's own weights, until it is given those of the other."""
    ((engine_id, engine),) = backend.cluster.decode_engines.items()
    os.kill(await engine.alive(), signal.SIGKILL)
    await backend.cluster.supervisor.comes_back(engine_id, START_S)

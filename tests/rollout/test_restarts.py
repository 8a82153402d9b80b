"""Processes of a job that are killed while it runs, on Ray: nothing is lost, doubled or wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rollout.async_backend import AsyncRolloutBackend
from rollout.tasks import Task
from rollout.types import Outcome
from tests.rollout.test_backend import TOLERANCE, config_for, sampled, teacher_logprobs

pytestmark = pytest.mark.ray
TASKS = [Task(f"task-{i}", f"{i} and {i} more. How many?", str(2 * i)) for i in range(12)]
VICTIMS = (("decode-0-0", "worker-0", "scheduler"), ("prefill-0", "decode-0-0"))
"""Those that go together. First an engine is left that gives the current weights to the other; then, as a
node takes its engines with it, none."""
STOPPED = "worker-0"
"""Only stopped, so that it must be ended first."""
BACK_DEADLINE_S = 500.0


@pytest.mark.timeout(900)
def test_every_process_may_be_killed_and_all_come_back_with_the_current_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = config_for(
        tiny_model_dir,
        tmp_path,
        "num_agents=2",
        "scheduler.max_attempts=20",
        "scheduler.heartbeat_s=0.3",
        "scheduler.heartbeat_deadline_s=6",
        "scheduler.restart_after_s=0",
        "engines.start_deadline_s=600",
        "scheduler.place_deadline_s=700",  # engines take their time on a busy host, and turns wait for them
        "task.turn_deadline_s=800",
        "task.wall_time_s=850",
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)

    async def run() -> None:
        async with AsyncRolloutBackend(config) as backend:
            await backend.update_weights(1, model.named_parameters())
            found, killing = [], None
            async with aclosing(backend.stream(TASKS)) as trajectories:
                async for trajectory in trajectories:
                    found.append(trajectory)
                    killing = killing or asyncio.create_task(kill(backend, model))
            assert killing is not None
            await killing
            assert sorted(t.trajectory_id for t in found) == sorted(
                f"1/{i}-{task.task_id}/{sample}" for i, task in enumerate(TASKS) for sample in range(2)
            )
            for t in found:
                assert t.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED), t.error
                theirs = teacher_logprobs(model, t)
                assert sampled(t, t.segments[0].logprobs) == pytest.approx(theirs, abs=TOLERANCE)
                assert {turn.weights_version for turn in t.turns} == {1}
            figures = await backend.metrics()
            assert figures["health/restarts"] >= sum(map(len, VICTIMS))

    asyncio.run(run())


async def kill(backend: AsyncRolloutBackend, model: Any) -> None:
    """End processes of each kind while others wait for them; returns when all are back. Who trains the model
    pushes it once more when no engine is left that holds it."""
    cluster = backend.cluster
    parts: dict[str, Any] = {**cluster.nodes, **cluster.prefill_engines, **cluster.decode_engines}
    parts |= {"scheduler": cluster.scheduler, "worker-0": backend.workers[0]}
    watch = cluster.supervisor.watch
    num_restored = 0
    async with asyncio.timeout(BACK_DEADLINE_S):
        for names in VICTIMS:
            for name in names:
                os.kill(await parts[name].alive(), signal.SIGSTOP if name == STOPPED else signal.SIGKILL)
            while watch.absent or not all(watch.health(name).num_restarts for name in names):
                if backend.needs_weights:
                    await backend.restore_weights(model.named_parameters())
                    num_restored += 1
                await asyncio.sleep(0.2)
    assert num_restored == 1

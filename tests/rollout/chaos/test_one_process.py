"""Faults at random from a seed while agents talk, in one process: every part is the real one, and may die.

Engines, nodes, the scheduler and agent workers die and are brought back, stored blocks are damaged, weights
are updated under trajectories that go on. What comes back is judged as scripts/chaos judges it, which does
the same to processes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.cluster import EngineCluster, start_cluster
from engines.errors import EngineFailed
from engines.model.runner import NamedArray
from engines.types import SamplingParams, Weights
from kvstore.keys import WeightsId
from rollout.agent_run import Sample
from rollout.chaos.environment import talk_tasks
from rollout.chaos.injector import flip_bits
from rollout.chaos.teacher import first_wrong_token
from rollout.chaos.weights import model_of, weights_of
from rollout.char_model import make_char_model
from rollout.controller import Controller
from rollout.journal import JournalWriter
from rollout.journal_record import FORMAT, StepBegan
from rollout.limits import Limits
from rollout.recorder import Recorder
from rollout.recovery import Recovery
from rollout.resumption import digest_of
from rollout.types import Outcome, Trajectory
from rollout.worker import AgentWorker
from tests.engines.local_cluster import cluster_spec
from tests.engines.restartable import Restartable, restart, spawn_restartable
from tests.rollout.test_worker import worker_spec

NUM_TASKS, GROUP, ROUNDS = 6, 2, 2
DEADLINE_S = 240.0
LIMITS = Limits(
    max_turns=8,
    max_context_tokens=256,
    wall_time_s=DEADLINE_S,
    turn_deadline_s=DEADLINE_S,
    tool_timeout_s=60.0,
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_char_model(folder, seed=1)
    return str(folder)


async def buckets(model_path: str, version: int) -> AsyncIterator[list[NamedArray]]:
    for name, tensor in weights_of(model_path, version):
        yield [(name, tensor.detach().numpy())]


class Job:
    """Agents on two workers, and a cluster of two engines a role."""

    def __init__(self, cluster: EngineCluster, model_path: str, folder: Path) -> None:
        self.cluster = cluster
        self.model_path = model_path
        self.folder = folder
        self.made: Counter[str] = Counter()
        spec = worker_spec(cluster.client_parts(), model_path, limits=LIMITS, keeps_records=True)
        spec = replace(spec, sampling=SamplingParams(max_tokens=12, temperature=0.0))
        self.workers = {
            name: Restartable(lambda name=name: AgentWorker(replace(spec, name=name)))
            for name in ("worker-0", "worker-1")
        }
        for name, worker in self.workers.items():
            cluster.supervisor.add(
                name, worker, lambda name=name: cluster.scheduler.forget_client(name, but="")
            )

    async def play(self, samples: list[Sample]) -> list[Trajectory]:
        workers: list[Any] = list(self.workers.values())
        recovery = Recovery(self.cluster.supervisor, list(self.workers), DEADLINE_S)
        controller = Controller(workers, max_running=6, wall_time_s=DEADLINE_S, recovery=recovery)
        began = StepBegan(FORMAT, 0, 0, "chaos", digest_of(samples))
        with JournalWriter(self.folder / "journal", began) as journal:
            recovery.records_in((journal.folder, journal.step))
            async with Recorder(workers).recording(journal, 1.0):
                return [trajectory async for trajectory in controller.run(samples)]

    async def update(self) -> None:
        version = self.cluster.weights.version + 1
        weights = Weights(version, WeightsId(f"version-{version}"))
        with suppress(EngineFailed):  # no engine was left that could take them
            await self.cluster.update_weights(weights, buckets(self.model_path, version), DEADLINE_S)

    async def nurse(self) -> None:
        """Push weights again where no engine is left that holds them, as whoever trains would."""
        while True:
            if self.cluster.supervisor.needs_weights:
                await self.update()
            await asyncio.sleep(0.2)

    async def make_faults(self, rng: random.Random) -> None:
        cluster = self.cluster
        kinds: dict[str, dict[str, Any]] = {
            "engine": {**cluster.prefill_engines, **cluster.decode_engines},
            "node": dict(cluster.nodes),
            "scheduler": {"scheduler": cluster.scheduler},
            "worker": dict(self.workers),
        }
        for _ in range(ROUNDS):
            for kind in rng.sample([*kinds, "blocks", "weights"], len(kinds) + 2):
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                if kind == "blocks":
                    await asyncio.to_thread(flip_bits, self.folder / "kv", cluster.layout, rng)
                elif kind == "weights":
                    await self.update()
                else:
                    part = kinds[kind][rng.choice(sorted(kinds[kind]))]
                    await part.kill()
                self.made[kind] += 1


@pytest.mark.parametrize("seed", [2])
def test_nothing_is_lost_doubled_or_wrong_whatever_dies(seed: int, model_path: str, tmp_path: Path) -> None:
    async def run() -> tuple[list[Sample], list[Trajectory], Counter[str]]:
        (tmp_path / "kv").mkdir()
        spec = cluster_spec(
            model_path, tmp_path / "kv", prefill_engines_per_node=2, decode_engines_per_node=2
        )
        scheduler = replace(
            spec.scheduler,
            heartbeat_s=0.02,
            heartbeat_deadline_s=60.0,
            max_attempts=100,
            place_deadline_s=DEADLINE_S,
        )
        cluster = await start_cluster(spawn_restartable, replace(spec, scheduler=scheduler), restart)
        try:
            job = Job(cluster, model_path, tmp_path)
            samples = [
                Sample(task, f"0/{index}", number)
                for index, task in enumerate(talk_tasks(seed, 0, NUM_TASKS, wait_s=0.8, hang_share=0.0))
                for number in range(GROUP)
            ]
            faults = asyncio.create_task(job.make_faults(random.Random(seed)))
            nursing = asyncio.create_task(job.nurse())
            found = await asyncio.wait_for(job.play(samples), DEADLINE_S)
            nursing.cancel()
            faults.cancel()
            await asyncio.wait({faults})
            assert faults.cancelled() or faults.exception() is None, faults.exception()
            return samples, found, job.made
        finally:
            await cluster.close()

    samples, found, made = asyncio.run(run())
    assert sorted(t.trajectory_id for t in found) == sorted(s.trajectory_id for s in samples)
    outcomes = {t.outcome for t in found}
    assert outcomes <= {Outcome.COMPLETED, Outcome.TRUNCATED}, [t.error for t in found if t.error]
    for trajectory in found:
        told = first_wrong_token(trajectory, lambda version: model_of(model_path, version), greedy=True)
        assert told is None, told
    assert set(made) == {"engine", "node", "scheduler", "worker", "blocks", "weights"}
    assert len({turn.weights_version for t in found for turn in t.turns}) > 1

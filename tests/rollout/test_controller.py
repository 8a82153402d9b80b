"""Every sample comes back exactly once, whatever its worker does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from engines.errors import EngineFailed
from engines.types import PhaseSeconds
from rollout.agent import Sample
from rollout.controller import Controller
from rollout.tasks import Task
from rollout.types import Outcome, StopReason, Trajectory


class ScriptedWorker:
    """Answers after some turns of the event loop; raises for the samples it is told to."""

    def __init__(self, failing: frozenset[int] = frozenset(), seed: int = 0) -> None:
        self.failing = failing
        self.random = random.Random(seed)
        self.num_running = self.most_running = 0
        self.seen: list[str] = []
        self.aborted: list[str] = []

    async def run(self, sample: Sample) -> Trajectory:
        self.seen.append(sample.trajectory_id)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            for _ in range(self.random.randrange(1, 20)):
                await asyncio.sleep(0)
            if sample.sample_index in self.failing:
                raise EngineFailed("the worker is dead")
            return trajectory_of(sample)
        finally:
            self.num_running -= 1

    async def abort(self, trajectory_id: str) -> None:
        self.aborted.append(trajectory_id)

    async def phase(self, trajectory_id: str) -> str | None:
        return "decode"


def trajectory_of(sample: Sample) -> Trajectory:
    return Trajectory(
        task_id=sample.task.task_id,
        group_id=sample.group_id,
        sample_index=sample.sample_index,
        segments=(),
        turns=(),
        reward=1.0,
        stop_reason=StopReason.DONE,
        started_s=0.0,
        duration_s=0.0,
        phases=PhaseSeconds(),
    )


def samples(num_groups: int, group_size: int) -> list[Sample]:
    return [
        Sample(Task(f"t{group}", "?", "!"), f"g{group}", index)
        for group in range(num_groups)
        for index in range(group_size)
    ]


async def collect(controller: Controller, wanted: list[Sample]) -> list[Trajectory]:
    return [trajectory async for trajectory in controller.run(wanted)]


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_comes_back_exactly_once_although_workers_fail(seed: int) -> None:
    workers = [ScriptedWorker(frozenset({2}), seed), ScriptedWorker(frozenset({2}), seed + 100)]
    controller = Controller(workers, max_running=None, wall_time_s=5.0)
    wanted = samples(6, 4)
    found = asyncio.run(collect(controller, wanted))
    assert Counter(t.trajectory_id for t in found) == Counter(s.trajectory_id for s in wanted)
    failed = [t for t in found if t.sample_index == 2]
    assert {t.outcome for t in failed} == {Outcome.ENGINE_FAILED}
    assert {t.error for t in failed} == {"the worker is dead"}
    assert {t.outcome for t in found if t.sample_index != 2} == {Outcome.COMPLETED}


def test_no_more_agents_run_at_once_than_allowed_and_workers_share_them_evenly() -> None:
    workers = [ScriptedWorker(seed=1), ScriptedWorker(seed=2)]
    controller = Controller(workers, max_running=4, wall_time_s=5.0)
    asyncio.run(collect(controller, samples(10, 2)))
    assert sum(worker.most_running for worker in workers) <= 4 + 1
    assert max(worker.most_running for worker in workers) <= 3
    assert min(len(worker.seen) for worker in workers) >= 5


def test_leaving_a_step_early_stops_what_still_runs() -> None:
    worker = ScriptedWorker()
    controller = Controller([worker], max_running=None, wall_time_s=5.0)

    async def take_one() -> None:
        stream = controller.run(samples(4, 4))
        await anext(stream)
        await stream.aclose()

    asyncio.run(take_one())
    assert worker.num_running == 0
    assert controller.running == []


def test_a_worker_that_never_answers_costs_its_trajectory_and_nothing_else() -> None:
    class Hung(ScriptedWorker):
        async def run(self, sample: Sample) -> Trajectory:
            if sample.sample_index == 0:
                await asyncio.Event().wait()
            return await super().run(sample)

    controller = Controller([Hung()], max_running=None, wall_time_s=0.05, answer_slack_s=0.05)
    found = asyncio.run(collect(controller, samples(1, 3)))
    assert [t.outcome for t in sorted(found, key=lambda t: t.sample_index)] == [
        Outcome.ENGINE_FAILED,
        Outcome.COMPLETED,
        Outcome.COMPLETED,
    ]


def test_phases_still_sum_to_the_duration_on_the_steps_clock() -> None:
    now = iter(range(1000))
    controller = Controller(
        [ScriptedWorker()], max_running=1, wall_time_s=5.0, clock=lambda: float(next(now))
    )
    for trajectory in asyncio.run(collect(controller, samples(2, 2))):
        assert trajectory.phases.total == pytest.approx(trajectory.duration_s)
        assert trajectory.duration_s > 0


def test_a_running_trajectorys_phase_is_asked_of_its_worker_and_silence_is_no_error() -> None:
    class Silent(ScriptedWorker):
        async def phase(self, trajectory_id: str) -> str | None:
            raise EngineFailed("the worker is dead")

    async def phases_seen(worker: ScriptedWorker) -> tuple[str | None, str | None]:
        controller = Controller([worker], max_running=None, wall_time_s=5.0)
        stream = controller.run(samples(1, 2))
        await anext(stream)
        (running,) = controller.running[:1] or [None]
        while_running = await controller.phase(running.trajectory_id) if running else None
        await stream.aclose()
        return while_running, await controller.phase("g0/0")

    assert asyncio.run(phases_seen(ScriptedWorker(seed=3))) == ("decode", None)
    assert asyncio.run(phases_seen(Silent(seed=3))) == (None, None)

"""Hands samples to agent workers and collects their trajectories.

Every sample given to `run` comes back exactly once, as a Trajectory with one outcome: a worker that dies or
does not answer gives an engine_failed one. It decides who runs what and how many at once, nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from engines.errors import EngineError
from engines.types import PhaseSeconds
from rollout.agent_run import Sample
from rollout.types import StopReason, Trajectory

ANSWER_SLACK_S = 30.0
"""How much longer than a trajectory may last its worker may take to answer."""

_PHASE_DEADLINE_S = 1.0


class Worker(Protocol):
    """An agent worker, or a proxy of one."""

    async def run(self, sample: Sample) -> Trajectory: ...

    async def abort(self, trajectory_id: str) -> None: ...

    async def phase(self, trajectory_id: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Running:
    """A trajectory under way."""

    trajectory_id: str
    started_s: float
    """Seconds since the step started."""


class Controller:
    """One rollout step at a time; all methods belong to one event loop."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        max_running: int | None,
        wall_time_s: float,
        answer_slack_s: float = ANSWER_SLACK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = list(workers)
        self._loads = [0] * len(self._workers)
        self._max_running = max_running
        self._answer_deadline_s = wall_time_s + answer_slack_s
        self._clock = clock
        self._running: dict[str, tuple[Running, int]] = {}

    @property
    def running(self) -> list[Running]:
        """What is under way, oldest first."""
        return [running for running, _ in self._running.values()]

    async def run(self, samples: Sequence[Sample]) -> AsyncGenerator[Trajectory, None]:
        """Trajectories of `samples` as they end. Leaving early aborts what still runs."""
        started_s = self._clock()
        gate = asyncio.Semaphore(self._max_running or max(1, len(samples)))
        tasks = [asyncio.create_task(self._run(sample, gate, started_s)) for sample in samples]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def abort(self, trajectory_id: str) -> None:
        """End one running trajectory; it comes back truncated."""
        found = self._running.get(trajectory_id)
        if found is not None:
            await self._workers[found[1]].abort(trajectory_id)

    async def phase(self, trajectory_id: str) -> str | None:
        """What a running trajectory does or waits for, one of PHASES; None if its worker does not say."""
        found = self._running.get(trajectory_id)
        if found is None:
            return None
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(_PHASE_DEADLINE_S):
                return await self._workers[found[1]].phase(trajectory_id)
        return None

    async def _run(self, sample: Sample, gate: asyncio.Semaphore, step_started_s: float) -> Trajectory:
        await asyncio.sleep(max(0.0, step_started_s + sample.start_after_s - self._clock()))
        async with gate:
            started_s = self._clock() - step_started_s
            index = min(range(len(self._loads)), key=self._loads.__getitem__)
            self._loads[index] += 1
            running = Running(sample.trajectory_id, started_s)
            self._running[sample.trajectory_id] = running, index
            try:
                trajectory = await self._ask(sample, index)
            finally:
                self._loads[index] -= 1
                self._running.pop(sample.trajectory_id, None)
            return self._in_step(trajectory, started_s, step_started_s)

    async def _ask(self, sample: Sample, index: int) -> Trajectory:
        try:
            async with asyncio.timeout(self._answer_deadline_s):
                return await self._workers[index].run(sample)
        except asyncio.CancelledError:
            # Nobody waits for it any more; the worker need not either.
            await asyncio.shield(self._workers[index].abort(sample.trajectory_id))
            raise
        except (EngineError, TimeoutError) as error:
            return _lost(sample, str(error) or f"no answer within {self._answer_deadline_s:.0f} s")

    def _in_step(self, trajectory: Trajectory, started_s: float, step_started_s: float) -> Trajectory:
        """The trajectory on the step's clock; what the worker did not see is `other`."""
        duration_s = self._clock() - step_started_s - started_s
        phases = trajectory.phases + PhaseSeconds(other=duration_s - trajectory.duration_s)
        return replace(trajectory, started_s=started_s, duration_s=duration_s, phases=phases)


def _lost(sample: Sample, error: str) -> Trajectory:
    return Trajectory(
        task_id=sample.task.task_id,
        group_id=sample.group_id,
        sample_index=sample.sample_index,
        segments=(),
        turns=(),
        reward=0.0,
        stop_reason=StopReason.ENGINE_ERROR,
        started_s=0.0,
        duration_s=0.0,
        phases=PhaseSeconds(),
        error=error,
    )

"""Plays a step's samples on agent workers and hands their trajectories back.

Every sample given to `run` comes back exactly once, as a Trajectory with one outcome, or `run` raises: a
worker that dies or does not answer gives an engine_failed one. Who begins, is played again or is dropped is
rollout.step_policy's to say; here is only who plays whom, and every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from engines.errors import EngineError
from engines.types import PhaseSeconds
from rollout.agent_run import Sample, one_line
from rollout.errors import RolloutError
from rollout.glance import Glance
from rollout.stacks import stacks
from rollout.step_policy import GroupRules, StepPolicy, Verdict, unplayed
from rollout.types import StopReason, Trajectory

ANSWER_SLACK_S = 30.0
"""How much longer than a trajectory may last its worker may take to answer."""

logger = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
"""How soon a change of `max_running` is noticed when nothing else happens."""
_MOST_LOST_WORKERS = 5
"""A sample that loses so many workers is likely what ends them."""
_LOOK_FOR_END_S = 0.05
_ABORT_DEADLINE_S = 2.0
_ASK_DEADLINE_S = 10.0
"""For questions to a worker that nobody's work depends on."""


class Worker(Protocol):
    """An agent worker, or a proxy of one."""

    async def run(self, sample: Sample) -> Trajectory: ...

    async def abort(self, trajectory_id: str) -> None: ...

    async def glance(self, num_oldest: int) -> Glance: ...

    async def stacks(self) -> str: ...


class Recovers(Protocol):
    """Whoever brings lost workers back."""

    async def worker_is_back(self, index: int) -> None:
        """Return when the worker, which was lost, plays again. Raises EngineError if it does not come
        back."""

    async def known(self, sample: Sample) -> Sample | Trajectory:
        """The sample with the turns that are on record, or what it was when it ended."""


@dataclass(frozen=True, slots=True)
class Running:
    """A trajectory under way."""

    trajectory_id: str
    started_s: float
    """Seconds since the step started."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of a step from before its run was cut off."""

    ended: tuple[tuple[Sample, Trajectory], ...] = ()
    elapsed_s: float = 0.0
    """What the step's clock showed last."""


@dataclass(slots=True)
class _Step:
    """One call of `run`."""

    policy: StepPolicy
    started_s: float
    ends: asyncio.Queue[tuple[Sample, Trajectory | Exception]] = field(default_factory=asyncio.Queue)
    back: asyncio.Queue[Trajectory | Exception | None] = field(default_factory=asyncio.Queue)
    """What comes back; then what ended the step early, or None."""
    agents: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    errands: set[asyncio.Task[None]] = field(default_factory=set)
    """Calls that end trajectories nobody wants any more."""


class Controller:
    """All methods belong to one event loop."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        max_running: int | None,
        wall_time_s: float,
        rules: GroupRules | None = None,
        recovery: Recovers | None = None,
        answer_slack_s: float = ANSWER_SLACK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `rules` every trajectory comes back as it ended; without `recovery` a worker that is lost
        takes its trajectories along."""
        self.max_running = max_running
        """Most trajectories under way at once in a step; may be changed while it runs. None: all."""
        self.num_replaced = 0
        """Failed trajectories that were played again, since the start."""
        self._workers = list(workers)
        self._loads = [0] * len(self._workers)
        self._glances = [Glance()] * len(self._workers)
        """What each worker said last of its agents."""
        self._gone: set[int] = set()
        """Workers that failed: they play nothing more while there is another, or until they are back."""
        self._num_begun = 0
        """Samples that have begun and not ended."""
        self._num_holds = 0
        self._returning: set[asyncio.Task[None]] = set()
        self._recovery = recovery
        self._rules = rules
        self._answer_deadline_s = wall_time_s + answer_slack_s
        self._clock = clock
        self._running: dict[str, tuple[Running, int]] = {}

    @property
    def running(self) -> list[Running]:
        """What is under way, oldest first."""
        return [running for running, _ in self._running.values()]

    async def run(
        self, samples: Sequence[Sample], earlier: Earlier | None = None
    ) -> AsyncGenerator[Trajectory, None]:
        """Trajectories of `samples` as they end. Leaving early aborts what still runs.

        Raises RolloutError when a group is short, after what has ended has come back.
        """
        earlier = earlier or Earlier()
        rules = self._rules or GroupRules(enough=len(samples) + 1)
        step = _Step(StepPolicy(samples, rules), self._clock() - earlier.elapsed_s)
        conducting = asyncio.create_task(self._conduct(step, earlier))
        try:
            while (back := await step.back.get()) is not None:
                if isinstance(back, Exception):
                    raise back
                yield back
        finally:
            conducting.cancel()
            await asyncio.wait([conducting])
            unfinished = [task for task in (*step.agents.values(), *step.errands) if not task.done()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no sample begins."""
        self._num_holds += 1
        try:
            yield
        finally:
            self._num_holds -= 1

    async def drained(self, deadline_s: float) -> None:
        """Return when no trajectory is under way. Raises RolloutError after the deadline."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self._num_begun:  # noqa: ASYNC110 - asked once an update
                    await asyncio.sleep(_LOOK_FOR_END_S)
        if self._num_begun:
            raise RolloutError(f"{self._num_begun} trajectories are still under way after {deadline_s:.0f} s")

    async def abort_all(self) -> None:
        """End all that are under way; they come back truncated."""
        await asyncio.gather(*(self.abort(trajectory_id) for trajectory_id in list(self._running)))

    async def abort(self, trajectory_id: str) -> None:
        """End one running trajectory; it comes back truncated."""
        found = self._running.get(trajectory_id)
        if found is not None:
            await self._abort(trajectory_id, found[1])

    async def glance(self, num_oldest: int) -> Glance:
        """What all workers' agents do now; of workers that do not answer, which are named, what they said
        last."""
        asked = (self._glance(index, num_oldest) for index in range(len(self._workers)))
        return Glance.of(await asyncio.gather(*asked), num_oldest)

    async def stacks(self) -> dict[str, str]:
        """What this process and the workers are doing, by name; those that answer."""
        found = {"driver": stacks()}
        for index, worker in enumerate(self._workers):
            with suppress(EngineError, TimeoutError):
                async with asyncio.timeout(_ASK_DEADLINE_S):
                    found[f"worker-{index}"] = await worker.stacks()
        return found

    # -- one step ------------------------------------------------------------------------------------

    async def _conduct(self, step: _Step, earlier: Earlier) -> None:
        """See the step through, however slowly what comes back is taken."""
        try:
            verdict = step.policy.restore(earlier.ended)
            while True:
                for trajectory in verdict.back:
                    step.back.put_nowait(trajectory)
                if verdict.short is not None:
                    raise RolloutError(verdict.short)
                if not step.policy.num_left:
                    break
                verdict = self._judge(step, *await self._next_end(step))
        except Exception as error:  # noqa: BLE001  whoever takes the trajectories is told
            step.back.put_nowait(error)
        else:
            step.back.put_nowait(None)

    async def _next_end(self, step: _Step) -> tuple[Sample, Trajectory | Exception]:
        """The next trajectory that ends; samples that arrive until then, or find room, begin."""
        while True:
            self._begin(step)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._nap_s(step)):
                    return await step.ends.get()

    def _begin(self, step: _Step) -> None:
        room = None if self.max_running is None else max(0, self.max_running - len(step.agents))
        room = 0 if self._num_holds else room
        for sample in step.policy.begin(self._clock() - step.started_s, room):
            agent = asyncio.create_task(self._play(sample, step))
            step.agents[sample.trajectory_id] = agent
            self._num_begun += 1
            agent.add_done_callback(self._ended)

    def _ended(self, agent: asyncio.Task[None]) -> None:
        self._num_begun -= 1

    def _nap_s(self, step: _Step) -> float:
        """Until the next sample arrives that has room, or until somebody may have changed the room."""
        arrival_s = step.policy.next_arrival_s()
        has_room = self.max_running is None or len(step.agents) < self.max_running
        if arrival_s is None or not has_room or self._num_holds:
            return _LOOK_EVERY_S
        return min(_LOOK_EVERY_S, max(0.0, arrival_s - (self._clock() - step.started_s)))

    def _judge(self, step: _Step, sample: Sample, end: Trajectory | Exception) -> Verdict:
        del step.agents[sample.trajectory_id]
        if isinstance(end, Exception):
            raise end
        num_replaced = step.policy.num_replaced
        verdict = step.policy.ended(sample, end)
        if step.policy.num_replaced > num_replaced:
            self.num_replaced += 1
            logger.warning("%s ended %s and is played again: %s", end.trajectory_id, end.outcome, end.error)
        for trajectory_id in verdict.drop:
            errand = asyncio.create_task(self.abort(trajectory_id))
            step.errands.add(errand)
            errand.add_done_callback(step.errands.discard)
        return verdict

    # -- one trajectory ------------------------------------------------------------------------------

    async def _play(self, sample: Sample, step: _Step) -> None:
        """Play it on the worker with the fewest; whatever happens, `step.ends` hears of it once."""
        now_s = self._clock() - step.started_s
        sample = replace(sample, started_s=sample.history.started_s if sample.history else now_s)
        end: Trajectory | Exception
        try:
            end = self._in_step(await self._play_on(sample, now_s), sample.started_s, step)
        except (RolloutError, AssertionError) as error:  # not this sample's fault: the step ends
            end = error
        except Exception as error:
            logger.exception("%s broke its worker's call", sample.trajectory_id)
            end = unplayed(sample, StopReason.ENGINE_ERROR, one_line(error))
        step.ends.put_nowait((sample, end))

    async def _play_on(self, sample: Sample, now_s: float) -> Trajectory:
        """On one worker after the other, should they be lost: each goes on from what is on record."""
        for num_lost in itertools.count(1):
            index = self._least_loaded()
            self._loads[index] += 1
            self._running[sample.trajectory_id] = Running(sample.trajectory_id, now_s), index
            try:
                return await self._ask(sample, index)
            except EngineError as error:
                self._lose(index)
                if self._recovery is None or num_lost == _MOST_LOST_WORKERS:
                    return unplayed(sample, StopReason.ENGINE_ERROR, str(error))
                if len(self._gone) == len(self._workers):
                    await self._recovery.worker_is_back(index)
                known = await self._recovery.known(sample)
                if isinstance(known, Trajectory):
                    return known
                sample = known
            finally:
                self._loads[index] -= 1
                self._running.pop(sample.trajectory_id, None)
        raise AssertionError

    def _lose(self, index: int) -> None:
        """The worker plays nothing, until it is back if it comes back."""
        if index in self._gone:
            return
        self._gone.add(index)
        recovery = self._recovery
        if recovery is not None:

            async def wait() -> None:
                with suppress(EngineError):
                    await recovery.worker_is_back(index)
                    self._gone.discard(index)

            returning = asyncio.create_task(wait())
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)

    async def _ask(self, sample: Sample, index: int) -> Trajectory:
        """Raises EngineError if the worker is lost."""
        try:
            async with asyncio.timeout(self._answer_deadline_s):
                return await self._workers[index].run(sample)
        except asyncio.CancelledError:
            # Nobody waits for it any more; the worker need not either.
            await asyncio.shield(self._abort(sample.trajectory_id, index))
            raise
        except TimeoutError:
            self._lose(index)
            late = f"no answer within {self._answer_deadline_s:.0f} s"
            return unplayed(sample, StopReason.ENGINE_ERROR, late)

    async def _abort(self, trajectory_id: str, index: int) -> None:
        with suppress(EngineError, TimeoutError):  # then its answer's deadline ends it
            async with asyncio.timeout(_ABORT_DEADLINE_S):
                await self._workers[index].abort(trajectory_id)

    async def _glance(self, index: int, num_oldest: int) -> Glance:
        try:
            async with asyncio.timeout(_ASK_DEADLINE_S):
                self._glances[index] = await self._workers[index].glance(num_oldest)
                return self._glances[index]
        except (EngineError, TimeoutError):
            return replace(self._glances[index], silent=(f"worker-{index}",))

    def _least_loaded(self) -> int:
        there = [index for index in range(len(self._workers)) if index not in self._gone]
        return min(there or range(len(self._workers)), key=self._loads.__getitem__)

    def _in_step(self, trajectory: Trajectory, started_s: float, step: _Step) -> Trajectory:
        """The trajectory on the step's clock; what the worker did not see is `other`."""
        duration_s = self._clock() - step.started_s - started_s
        phases = trajectory.phases + PhaseSeconds(other=duration_s - trajectory.duration_s)
        return replace(trajectory, started_s=started_s, duration_s=duration_s, phases=phases)

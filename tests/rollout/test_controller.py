"""Every sample comes back exactly once, whatever its worker does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from engines.errors import EngineFailed
from engines.types import PhaseSeconds
from rollout.agent import Sample
from rollout.controller import Controller, Earlier
from rollout.errors import RolloutError, UserError
from rollout.glance import AgentNow, Glance
from rollout.history import History
from rollout.step_policy import GroupRules
from rollout.tasks import Task
from rollout.types import Outcome, StopReason, Trajectory


class ScriptedWorker:
    """Answers after some turns of the event loop; raises for the samples it is told to."""

    def __init__(
        self,
        failing: frozenset[int] = frozenset(),
        seed: int = 0,
        *,
        fails_first: frozenset[int] = frozenset(),
    ) -> None:
        self.failing = failing
        self.fails_first = fails_first
        """These fail in the end of their first attempt, as data."""
        self.played: list[Sample] = []
        self.random = random.Random(seed)
        self.num_running = self.most_running = 0
        self.seen: list[str] = []
        self.aborted: list[str] = []

    async def run(self, sample: Sample) -> Trajectory:
        self.seen.append(sample.trajectory_id)
        self.played.append(sample)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            for _ in range(self.random.randrange(1, 20)):
                await asyncio.sleep(0)
            if sample.sample_index in self.failing:
                raise EngineFailed("the worker is dead")
            if sample.sample_index in self.fails_first and not sample.attempt:
                return replace(trajectory_of(sample), stop_reason=StopReason.TOOL_ERROR)
            return trajectory_of(sample)
        finally:
            self.num_running -= 1

    async def abort(self, trajectory_id: str) -> None:
        self.aborted.append(trajectory_id)

    async def glance(self, num_oldest: int) -> Glance:
        return Glance(num_moves=3, num_turns=2, oldest=(AgentNow("g0/0", 5.0, "decode", 1.0, 2),))

    async def stacks(self) -> str:
        return "here"


class StoppableWorker(ScriptedWorker):
    """Its slow samples run until they are aborted."""

    def __init__(self, slow: frozenset[int]) -> None:
        super().__init__()
        self.slow = slow
        self.stops: dict[str, asyncio.Event] = {}

    async def run(self, sample: Sample) -> Trajectory:
        if sample.sample_index not in self.slow:
            return await super().run(sample)
        self.played.append(sample)
        await self.stops.setdefault(sample.trajectory_id, asyncio.Event()).wait()
        return replace(trajectory_of(sample), stop_reason=StopReason.ABORTED)

    async def abort(self, trajectory_id: str) -> None:
        self.stops.setdefault(trajectory_id, asyncio.Event()).set()


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


def test_what_agents_do_is_asked_of_all_workers_and_silence_is_named() -> None:
    class Silent(ScriptedWorker):
        async def glance(self, num_oldest: int) -> Glance:
            raise EngineFailed("the worker is dead")

        async def stacks(self) -> str:
            raise EngineFailed("the worker is dead")

    class Silencing(ScriptedWorker):
        answers = True

        async def glance(self, num_oldest: int) -> Glance:
            if not self.answers:
                raise EngineFailed("it does not answer any more")
            return await super().glance(num_oldest)

    stacked = Controller([ScriptedWorker(), Silent(), ScriptedWorker()], max_running=None, wall_time_s=5.0)
    glance = asyncio.run(stacked.glance(1))
    assert (glance.num_moves, glance.num_turns, glance.silent) == (6, 4, ("worker-1",))
    silenced = Silencing()
    controller = Controller([silenced], max_running=None, wall_time_s=5.0)
    assert asyncio.run(controller.glance(1)).silent == ()
    silenced.answers = False
    again = asyncio.run(controller.glance(1))
    assert (again.num_moves, again.silent) == (3, ("worker-0",)), "what it said last still holds"
    assert [str(agent) for agent in glance.oldest] == ["g0/0: 5 s, 2 turns, in decode for 1 s"]
    told = asyncio.run(stacked.stacks())
    assert set(told) == {"driver", "worker-0", "worker-2"}
    assert "in Controller.stacks" in told["driver"]


def test_a_worker_that_failed_plays_nothing_more_while_there_is_another() -> None:
    broken, whole = ScriptedWorker(frozenset(range(100))), ScriptedWorker()
    controller = Controller([broken, whole], max_running=2, wall_time_s=5.0)
    found = asyncio.run(collect(controller, samples(20, 1)))
    assert len(broken.seen) == 1
    assert Counter(t.outcome for t in found) == {Outcome.ENGINE_FAILED: 1, Outcome.COMPLETED: 19}


class Recovering:
    """Workers come back when a test says so; what is on record is what it is given."""

    def __init__(self, on_record: dict[str, Sample | Trajectory] | None = None) -> None:
        self.back = asyncio.Event()
        self.on_record = on_record or {}

    async def worker_is_back(self, index: int) -> None:
        await self.back.wait()

    async def known(self, sample: Sample) -> Sample | Trajectory:
        return self.on_record.get(sample.trajectory_id, sample)


class Dying(ScriptedWorker):
    """Dies as soon as it plays, so often."""

    def __init__(self, num_deaths: int) -> None:
        super().__init__()
        self.num_deaths = num_deaths

    async def run(self, sample: Sample) -> Trajectory:
        if self.num_deaths:
            self.num_deaths -= 1
            self.played.append(sample)
            await asyncio.sleep(0)
            raise EngineFailed("the worker is dead")
        return await super().run(sample)


def test_samples_of_a_worker_that_is_lost_go_on_elsewhere_from_what_is_on_record() -> None:
    async def play() -> None:
        running, ended, unknown = samples(1, 3)
        half = replace(running, history=History((), (), 0.0, 3.0))
        whole = replace(trajectory_of(ended), reward=7.0)
        recovery = Recovering({running.trajectory_id: half, ended.trajectory_id: whole})
        dying, other = Dying(num_deaths=100), ScriptedWorker()
        controller = Controller([dying, other], max_running=None, wall_time_s=5.0, recovery=recovery)
        found = await collect(controller, [running, unknown, ended])
        assert {t.trajectory_id: t.stop_reason for t in found} == {
            s.trajectory_id: StopReason.DONE for s in (running, ended, unknown)
        }
        assert max(t.reward for t in found) == 7.0
        assert [s.trajectory_id for s in dying.played] == [running.trajectory_id, ended.trajectory_id]
        assert [s.history for s in other.played if s.trajectory_id == running.trajectory_id] == [half.history]

    asyncio.run(play())


def test_a_step_waits_for_its_only_worker_and_gives_a_sample_up_that_ends_every_one() -> None:
    async def play() -> None:
        recovery, dying = Recovering(), Dying(num_deaths=1)
        controller = Controller([dying], max_running=None, wall_time_s=5.0, recovery=recovery)
        step = asyncio.create_task(collect(controller, samples(1, 1)))
        while not dying.played:  # noqa: ASYNC110 - the worker counts
            await asyncio.sleep(0)
        assert not step.done()
        recovery.back.set()
        assert [t.outcome for t in await step] == [Outcome.COMPLETED]
        dying.num_deaths = 100
        [given_up] = await collect(controller, samples(1, 1))
        assert given_up.outcome is Outcome.ENGINE_FAILED
        assert given_up.error == "the worker is dead"

    asyncio.run(asyncio.wait_for(play(), 30))


def test_a_failed_sample_is_played_again_under_another_request_id() -> None:
    worker = ScriptedWorker(fails_first=frozenset({1}))
    rules = GroupRules(enough=3, max_replacements=1)
    controller = Controller([worker], max_running=None, wall_time_s=5.0, rules=rules)
    found = asyncio.run(collect(controller, samples(2, 3)))
    assert len(found) == 6
    assert {t.outcome for t in found} == {Outcome.COMPLETED}
    assert controller.num_replaced == 2
    tried = [sample.request_id(0) for sample in worker.played if sample.sample_index == 1]
    assert sorted(tried) == ["g0/1/0", "g0/1~1/0", "g1/1/0", "g1/1~1/0"]


def test_a_short_group_ends_the_step_after_what_ended_has_come_back() -> None:
    worker = ScriptedWorker(frozenset({1}))
    controller = Controller([worker], max_running=1, wall_time_s=5.0, rules=GroupRules(enough=2, least=2))
    found: list[Trajectory] = []

    async def collect_some() -> None:
        async for trajectory in controller.run(samples(3, 2)):
            found.append(trajectory)

    with pytest.raises(RolloutError, match=r"group g0 cannot have 2 usable .* g0/1 ended engine_failed"):
        asyncio.run(collect_some())
    assert [t.trajectory_id for t in found] == ["g0/0", "g0/1"]
    assert worker.num_running == 0


def test_stragglers_of_a_complete_group_are_ended_and_come_back_dropped() -> None:
    worker = StoppableWorker(slow=frozenset({2, 3}))
    controller = Controller([worker], max_running=3, wall_time_s=5.0, rules=GroupRules(enough=2))
    found = {t.trajectory_id: t.stop_reason for t in asyncio.run(collect(controller, samples(1, 4)))}
    assert found == {
        "g0/0": StopReason.DONE,
        "g0/1": StopReason.DONE,
        "g0/2": StopReason.DROPPED,
        "g0/3": StopReason.DROPPED,
    }
    assert {sample.sample_index for sample in worker.played} <= {0, 1, 2, 3}


def test_an_error_nobody_foresaw_costs_its_trajectory_and_is_on_record() -> None:
    class Surprising(ScriptedWorker):
        async def run(self, sample: Sample) -> Trajectory:
            if sample.sample_index == 1:
                raise KeyError("surprise")
            return await super().run(sample)

    controller = Controller([Surprising()], max_running=None, wall_time_s=5.0)
    found = {t.sample_index: t for t in asyncio.run(collect(controller, samples(1, 3)))}
    assert len(found) == 3
    assert (found[1].outcome, found[1].error) == (Outcome.ENGINE_FAILED, "KeyError: 'surprise'")


def test_what_the_configuration_has_wrong_ends_the_step() -> None:
    class Misconfigured(ScriptedWorker):
        async def run(self, sample: Sample) -> Trajectory:
            raise UserError("no chat template; give one")

    controller = Controller([Misconfigured()], max_running=None, wall_time_s=5.0)
    with pytest.raises(UserError, match="no chat template"):
        asyncio.run(collect(controller, samples(1, 3)))


def test_what_had_ended_comes_back_as_it_was_and_the_clock_goes_on() -> None:
    wanted, worker = samples(1, 3), ScriptedWorker()
    before = replace(trajectory_of(wanted[0]), duration_s=7.0)
    controller = Controller([worker], max_running=None, wall_time_s=5.0)

    async def collect_rest() -> list[Trajectory]:
        earlier = Earlier(((wanted[0], before),), elapsed_s=10.0)
        return [trajectory async for trajectory in controller.run(wanted, earlier)]

    found = asyncio.run(collect_rest())
    assert found[0] == before
    assert {t.sample_index for t in found} == {0, 1, 2}
    assert worker.seen == ["g0/1", "g0/2"]
    assert all(t.started_s >= 10.0 for t in found[1:])


def test_samples_begin_although_nobody_takes_what_has_come_back() -> None:
    class Counting(ScriptedWorker):
        saw_all = asyncio.Event()

        async def run(self, sample: Sample) -> Trajectory:
            if len(self.seen) == 5:
                self.saw_all.set()
            return await super().run(sample)

    worker = Counting()
    controller = Controller([worker], max_running=1, wall_time_s=5.0)

    async def take_one_and_wait() -> None:
        stream = controller.run(samples(2, 3))
        await anext(stream)
        async with asyncio.timeout(20):
            await worker.saw_all.wait()
        await stream.aclose()

    asyncio.run(take_one_and_wait())


def test_while_held_nothing_begins_and_what_runs_is_waited_for_or_ended() -> None:
    async def play() -> None:
        slow = StoppableWorker(slow=frozenset({0}))
        controller = Controller([slow], max_running=1, wall_time_s=5.0)
        step = asyncio.create_task(collect(controller, samples(1, 3)))
        while not slow.played:  # noqa: ASYNC110 - the worker counts
            await asyncio.sleep(0)
        with controller.held():
            with pytest.raises(RolloutError, match="1 trajectories are still under way after 0 s"):
                await controller.drained(0.05)
            await controller.abort_all()
            await controller.drained(5.0)
            await asyncio.sleep(0)
            assert len(slow.played) == 1
            assert not step.done()
        found = await step
        assert [t.stop_reason for t in found] == [StopReason.ABORTED, StopReason.DONE, StopReason.DONE]

    asyncio.run(asyncio.wait_for(play(), 30))

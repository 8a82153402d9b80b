"""A step that is cut off and resumed on a real cluster in one process: same tokens, KV from the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from engines.cluster import EngineCluster
from rollout.agent_run import Sample
from rollout.controller import Controller
from rollout.journal import JournalWriter, StepJournal, read_step
from rollout.journal_record import FORMAT, StepBegan
from rollout.limits import Limits
from rollout.recorder import Recorder
from rollout.replay_task import ReplayTask
from rollout.resumption import Resumption, digest_of
from rollout.traces.session import Piece, Round, Session
from rollout.types import Outcome, Trajectory
from rollout.worker import AgentWorker
from tests.engines.local_cluster import running_cluster, with_store
from tests.engines.paced import paced_spec
from tests.rollout.test_worker import worker_spec

LIMITS = Limits(
    max_turns=10, max_context_tokens=4096, wall_time_s=60.0, turn_deadline_s=60.0, tool_timeout_s=10.0
)
ROUNDS = 6
SAMPLES = [
    Sample(
        ReplayTask(
            f"s{index}",
            Session(
                f"s{index}",
                tuple(
                    Round((Piece(f"s{index}/{number}", 0, 40),), 8, tool_wait_s=0.02)
                    for number in range(ROUNDS)
                ),
            ),
        ),
        f"0/{index}",
        0,
    )
    for index in range(4)
]


class Measured(JournalWriter):
    """Says when it holds so many bytes."""

    def __init__(self, folder: Path, began: StepBegan, most_bytes: float) -> None:
        self.full = asyncio.Event()
        self._most_bytes = most_bytes
        self._loop = asyncio.get_running_loop()
        super().__init__(folder, began)

    def append(self, frames: Sequence[bytes]) -> None:
        super().append(frames)
        if self.num_bytes >= self._most_bytes:
            self._loop.call_soon_threadsafe(self.full.set)


@asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[tuple[EngineCluster, list[AgentWorker], Controller]]:
    """A cluster over the store in `folder`, with two agent workers."""
    async with running_cluster(with_store(paced_spec(folder / "kv"), refresh_s=1.0)) as cluster:
        spec = worker_spec(cluster.client_parts(), limits=LIMITS, tool_wait_scale=1.0, keeps_records=True)
        workers = [AgentWorker(spec), AgentWorker(spec)]
        yield cluster, workers, Controller(workers, max_running=None, wall_time_s=60.0)


async def play(folder: Path, resumption: Resumption | None, stop_at_bytes: float) -> list[Trajectory]:
    """Play the step on; cut it off when so much is in its journal."""
    (folder / "kv").mkdir(exist_ok=True)
    async with playing(folder) as (cluster, workers, controller):
        samples, earlier = (SAMPLES, None) if resumption is None else resumption.take_up(SAMPLES)
        weights = cluster.weights
        began = StepBegan(FORMAT, 0, weights.version, weights.weights_id, digest_of(SAMPLES))
        found: list[Trajectory] = []
        with Measured(folder / "journal", began, stop_at_bytes) as journal:

            async def go_on() -> None:
                async with Recorder(workers).recording(journal, 0.1):
                    found.extend([trajectory async for trajectory in controller.run(samples, earlier)])

            step, full = asyncio.create_task(go_on()), asyncio.create_task(journal.full.wait())
            await asyncio.wait({step, full}, timeout=120, return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                await step
            for task in (step, full):
                task.cancel()
            await asyncio.gather(step, full, return_exceptions=True)
        return found


def journal_of(folder: Path) -> StepJournal:
    found = read_step(folder / "journal", 0)
    assert found is not None
    return found


def test_a_step_that_was_cut_off_twice_ends_with_what_it_would_have_said(tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    cut.mkdir()
    whole.mkdir()
    expected = {t.trajectory_id: t for t in asyncio.run(play(whole, None, float("inf")))}
    size = (whole / "journal/step-000000/000000.journal").stat().st_size

    back = asyncio.run(play(cut, None, size / 3))
    first = journal_of(cut)
    assert len(back) < len(SAMPLES)
    assert first.running
    asyncio.run(play(cut, Resumption(0, False, None, first), size / 4))
    second = journal_of(cut)
    kept = {name: len(history.turns) for name, history in second.running.items()}
    found = asyncio.run(play(cut, Resumption(0, False, None, second), float("inf")))

    assert sorted(t.trajectory_id for t in found) == sorted(expected)
    for trajectory in found:
        wanted = expected[trajectory.trajectory_id]
        assert trajectory.outcome is Outcome.COMPLETED
        assert [s.token_ids for s in trajectory.segments] == [s.token_ids for s in wanted.segments]
        assert [turn.prompt_tokens for turn in trajectory.turns] == [
            turn.prompt_tokens for turn in wanted.turns
        ]
        assert trajectory.started_s + trajectory.duration_s <= second.elapsed_s + 60
    resumed = [t for t in found if 0 < kept.get(t.trajectory_id, 0) < ROUNDS]
    assert resumed
    for trajectory in resumed:
        turn = trajectory.turns[kept[trajectory.trajectory_id]]
        assert turn.hit_tokens > 0, "the KV of the lives before is in the store, under the same name"
    assert journal_of(cut).running == {}
    assert set(journal_of(cut).ended) == set(expected)


def test_what_a_step_lost_of_its_last_turn_is_played_again(tmp_path: Path) -> None:
    asyncio.run(play(tmp_path, None, 4000))
    path = tmp_path / "journal/step-000000/000000.journal"
    path.write_bytes(path.read_bytes()[:-7])
    journal = journal_of(tmp_path)
    assert journal.torn_bytes > 0
    found = asyncio.run(play(tmp_path, Resumption(0, False, None, journal), float("inf")))
    assert [len(t.turns) for t in found] == [ROUNDS] * len(SAMPLES)

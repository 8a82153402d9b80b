"""Replayed agents on paced engines: what they tell of their trajectories decides whose turn is first."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engines.cluster import EngineCluster
from rollout.agent_run import Sample
from rollout.limits import Limits
from rollout.replay_agent import ReplaySetup, run_replay
from rollout.replay_task import ReplayTask
from rollout.replay_tokens import TokenSource
from rollout.traces.session import Piece, Round, Session
from rollout.types import Outcome, Trajectory
from tests.engines.local_cluster import running_cluster
from tests.engines.paced import paced_spec

LIMITS = Limits(10, 1000, wall_time_s=60.0, turn_deadline_s=30.0, tool_timeout_s=1.0)
ROUNDS_OF = {"short": 1, "other": 2, "long": 5}
GROUP_OF = {"short": "0/task", "other": "0/another", "long": "0/task"}


def session(name: str) -> Session:
    rounds = (Round((Piece(name, 20 * index, 20),), 3) for index in range(ROUNDS_OF[name]))
    return Session(name, tuple(rounds))


async def until(cluster: EngineCluster, num_waiting: int) -> None:
    end_s = time.monotonic() + 10
    while (await cluster.scheduler.figures())["queue_length"] != num_waiting:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.001)


async def first_turns(cluster: EngineCluster) -> tuple[list[str], list[Trajectory]]:
    """The agents in the order in which the first turns of all of them were placed at once."""
    placed: list[str] = []
    setup = ReplaySetup(cluster.client_parts().client(), LIMITS, TokenSource(range(256)), 0.0)

    def listen(name: str, phase: str) -> None:
        if phase == "prefill" and name not in placed:
            placed.append(name)

    await cluster.scheduler.pause(10)
    playing = []
    for index, name in enumerate(ROUNDS_OF):
        sample = Sample(ReplayTask(name, session(name)), GROUP_OF[name], index)
        on_phase = lambda phase, name=name: listen(name, phase)  # noqa: E731
        playing.append(asyncio.ensure_future(run_replay(sample, setup, None, on_phase)))
        await until(cluster, index + 1)
    await cluster.scheduler.resume()
    return placed, await asyncio.gather(*playing)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("fifo", ["short", "other", "long"]), ("longest_remaining", ["long", "short", "other"])],
)
def test_the_group_with_the_longest_trajectory_goes_first_where_the_order_says_so(
    order: str, expected: list[str], tmp_path: Path
) -> None:
    async def play() -> tuple[list[str], list[Trajectory]]:
        spec = paced_spec(tmp_path)
        scheduler = replace(spec.scheduler, order=order)  # type: ignore[arg-type]
        async with running_cluster(replace(spec, scheduler=scheduler)) as cluster:
            return await first_turns(cluster)

    placed, trajectories = asyncio.run(play())
    assert placed == expected
    assert all(trajectory.outcome is Outcome.COMPLETED for trajectory in trajectories)

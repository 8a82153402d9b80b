"""Which sessions there are: every one comes back once, and a name is used once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rollout.compose import load_config
from rollout.serve.errors import ApiError
from rollout.serve.sessions import Sessions
from rollout.serve.wire import SessionEnd, SessionSpec
from rollout.types import Outcome, StopReason, Trajectory


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


Opened = Callable[..., tuple[Sessions, list[Trajectory]]]


@pytest.fixture
def opened(clock: Clock) -> Opened:
    def make(*overrides: str) -> tuple[Sessions, list[Trajectory]]:
        ended: list[Trajectory] = []
        # Sessions that are asked nothing need no model.
        return Sessions(None, load_config(overrides).serve, ended.append, clock), ended  # type: ignore[arg-type]

    return make


def test_a_session_comes_back_once_with_what_its_client_says(opened: Opened, clock: Clock) -> None:
    sessions, ended = opened()
    clock.now_s += 3
    sessions.open("a", SessionSpec(task_id="t", group_id="g", sample_index=2))
    clock.now_s += 2
    trajectory = sessions.end("a", SessionEnd(reward=0.5, stop_reason=StopReason.TOOL_ERROR, error="broke"))
    assert (trajectory.trajectory_id, trajectory.reward) == ("g/2", 0.5)
    assert (trajectory.started_s, trajectory.duration_s, trajectory.phases.other) == (3.0, 2.0, 2.0)
    assert sessions.end("a", SessionEnd(reward=9.0)) is trajectory
    assert ended == [trajectory]


def test_a_name_is_used_once(opened: Opened) -> None:
    sessions, _ = opened()
    assert sessions.at("a") is sessions.at("a")
    with pytest.raises(ApiError, match="open already"):
        sessions.open("a", SessionSpec())
    sessions.end("a", SessionEnd())
    with pytest.raises(ApiError, match="has ended"):
        sessions.at("a")


def test_there_is_a_most_and_the_oldest_that_ended_are_forgotten(opened: Opened) -> None:
    sessions, _ = opened("serve.max_sessions=2")
    for name in ("a", "b"):
        sessions.at(name)
    with pytest.raises(ApiError, match=r"serve\.max_sessions"):
        sessions.at("c")
    for name in ("a", "b"):
        sessions.end(name, SessionEnd())
    sessions.at("c")
    sessions.end("c", SessionEnd())
    assert sessions.so_far("b").task_id == "b"
    with pytest.raises(ApiError, match="long ago"):
        sessions.so_far("a")
    with pytest.raises(ApiError, match="has ended"):
        sessions.at("a")
    with pytest.raises(ApiError, match="no session"):
        sessions.end("never", SessionEnd())


def test_idle_and_open_sessions_are_not_lost(opened: Opened, clock: Clock) -> None:
    sessions, ended = opened("serve.session_idle_s=10")
    sessions.at("old")
    clock.now_s += 8
    sessions.at("new")
    clock.now_s += 2

    async def look_once() -> None:
        looking = asyncio.create_task(sessions.expire())
        await asyncio.sleep(0)
        looking.cancel()

    asyncio.run(look_once())
    assert [(t.task_id, t.outcome) for t in ended] == [("old", Outcome.TIMED_OUT)]
    sessions.close()
    assert [(t.task_id, t.stop_reason) for t in ended[1:]] == [("new", StopReason.ABORTED)]
    assert len(sessions) == 0

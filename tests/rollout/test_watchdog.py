"""When nothing moves for a while, it is said who waits where; while something moves, nothing is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rollout.glance import AgentNow, Glance
from rollout.stacks import stacks
from rollout.watchdog import LoopAlarm, StallPolicy, Watchdog

AGENT = AgentNow("0/a/1", running_s=70.0, phase="kv_load", phase_s=65.0, num_turns=3)


def glance(num_moves: int, *agents: AgentNow, silent: tuple[str, ...] = ()) -> Glance:
    return Glance(num_moves=num_moves, oldest=agents, silent=silent)


def test_silence_is_told_once_and_again_when_it_has_doubled() -> None:
    policy = StallPolicy(60.0)
    told = [policy.told(float(at_s), glance(5, AGENT)) for at_s in range(0, 300, 10)]
    assert [still_s for still_s in told if still_s is not None] == [60.0, 120.0, 240.0]


def test_whoever_moves_ends_the_silence() -> None:
    policy = StallPolicy(60.0)
    for at_s in range(0, 500, 10):
        assert policy.told(float(at_s), glance(at_s // 50, AGENT)) is None
    told = [policy.told(float(at_s), glance(99, AGENT)) for at_s in (500, 550, 560, 600)]
    assert told == [None, None, 60.0, None]


def test_where_nobody_runs_nobody_is_stuck_unless_a_worker_is_silent() -> None:
    policy = StallPolicy(60.0)
    assert all(policy.told(float(at_s), glance(5)) is None for at_s in range(0, 500, 10))
    told = [policy.told(float(at_s), glance(5, silent=("worker-0",))) for at_s in (500, 600)]
    assert told == [None, 110.0]


class Stuck:
    """Agents that never move."""

    async def glance(self, num_oldest: int) -> Glance:
        return glance(5, *[AGENT] * num_oldest, silent=("worker-1",))

    async def stacks(self) -> Mapping[str, str]:
        return {"driver": "waits for engines", "worker-0": "waits for a tool"}


def test_who_is_stuck_is_named_and_the_stacks_are_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s, over = 0.0, asyncio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        if now_s > 61:
            over.set()
        await asyncio.sleep(0)

    async def watch() -> None:
        watchdog = Watchdog(
            Stuck(), tmp_path / "stalls.txt", stall_s=60.0, num_oldest=2, clock=lambda: now_s, sleep=sleep
        )
        async with watchdog, asyncio.timeout(20):
            await over.wait()

    with caplog.at_level(logging.WARNING):
        asyncio.run(watch())
    (line,) = [record.message for record in caplog.records]
    assert "nothing has moved for 60 s" in line
    assert line.count("0/a/1: 70 s, 3 turns, in kv_load for 65 s") == 2
    assert "worker-1 does not answer" in line
    told = (tmp_path / "stalls.txt").read_text()
    assert "waits for engines" in told
    assert "waits for a tool" in told


def test_a_loop_that_is_held_up_has_its_threads_written_down(tmp_path: Path) -> None:
    path = tmp_path / "stalls.txt"
    alarm = LoopAlarm(path, stall_s=0.2)
    alarm.put_off()
    ends_s = time.monotonic() + 20
    while not path.stat().st_size and time.monotonic() < ends_s:
        time.sleep(0.05)
    alarm.close()
    assert "test_a_loop_that_is_held_up" in path.read_text()


def test_an_alarm_that_is_put_off_leaves_no_file(tmp_path: Path) -> None:
    alarm = LoopAlarm(tmp_path / "stalls.txt", stall_s=60.0)
    alarm.put_off()
    alarm.close()
    assert list(tmp_path.iterdir()) == []


def test_stacks_show_where_coroutines_wait_and_count_those_that_wait_alike() -> None:
    async def innermost() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await innermost()

    async def look() -> str:
        tasks = [asyncio.create_task(outer()) for _ in range(3)]
        await asyncio.sleep(0)
        found = stacks()
        for task in tasks:
            task.cancel()
        return found

    told = asyncio.run(look())
    assert "3 tasks:" in told
    assert told.index(".outer\n") < told.index(".innermost\n")
    assert "thread MainThread:" in told

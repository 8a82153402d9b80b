"""Calling tools: in time, within their places, again only where that is safe, not while they keep failing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from rollout.environment import ToolError
from rollout.tools.config import ToolsConfig
from rollout.tools.figures import ToolFigures
from rollout.tools.runner import ToolRunner
from rollout.tools.tool import Function, MalformedCall, Tool, tool

CONFIG = ToolsConfig(
    timeout_s=20.0,
    max_concurrent=2,
    attempts=3,
    backoff_s=0.0,
    failures_to_cut_off=3,
    cut_off_s=10.0,
    max_malformed_calls=3,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def play(act: Callable[[ToolRunner], Coroutine[Any, Any, None]], config: ToolsConfig = CONFIG) -> None:
    asyncio.run(act(ToolRunner(config)))


async def told(runner: ToolRunner, function: Function, **arguments: object) -> str:
    try:
        return await runner.call(Tool.of(function), arguments)
    except ToolError as error:
        return f"ERROR: {error}"


def figures(runner: ToolRunner, function: Function) -> ToolFigures:
    return runner.report().tools[function.__name__]


def flaky(num_failures: int, *, idempotent: bool) -> Function:
    """A tool that works after so many failures."""
    left = [num_failures]

    @tool(idempotent=idempotent)
    async def fetch() -> str:
        """Fetch it."""
        if left[0]:
            left[0] -= 1
            raise ConnectionError("reset\nby peer")
        return "here"

    return fetch


def test_only_an_idempotent_tool_is_tried_again() -> None:
    async def act(runner: ToolRunner) -> None:
        again, once = flaky(2, idempotent=True), flaky(2, idempotent=False)
        assert await told(runner, again) == "here"
        assert (figures(runner, again).failures, figures(runner, again).retries) == (2, 2)
        assert await told(ToolRunner(CONFIG), once) == "ERROR: fetch failed: ConnectionError: reset"

    play(act)


def test_pauses_between_attempts_double_and_are_drawn_at_random() -> None:
    paused: list[float] = []

    async def act() -> None:
        loop = asyncio.get_running_loop()
        runner = ToolRunner(replace(CONFIG, backoff_s=0.01), chance=lambda: 0.25)
        started_s = loop.time()
        assert await told(runner, flaky(2, idempotent=True)) == "here"
        paused.append(loop.time() - started_s)

    asyncio.run(act())
    assert paused[0] >= 0.01 * 0.5 + 0.02 * 0.5


def test_an_async_tool_that_does_not_answer_is_ended_and_told() -> None:
    ended = []

    @tool(timeout_s=0.05)
    async def sleepy() -> None:
        """Sleep."""
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def act(runner: ToolRunner) -> None:
        assert await told(runner, sleepy) == "ERROR: sleepy did not answer within 0.05 s"
        assert ended == [True]
        assert (figures(runner, sleepy).timeouts, figures(runner, sleepy).failures) == (1, 1)

    play(act)


def test_a_sync_tool_that_hangs_keeps_its_place_and_others_are_told_that_it_is_busy() -> None:
    release = threading.Event()

    @tool(timeout_s=0.05, max_concurrent=1)
    def stuck(text: str) -> str:
        """Wait."""
        release.wait(30)
        return text

    async def act(runner: ToolRunner) -> None:
        assert "did not answer within" in await told(runner, stuck, text="a")
        assert await told(runner, stuck, text="b") == "ERROR: stuck is busy; try again later"
        release.set()
        async with asyncio.timeout(20):
            while "ERROR" in await told(runner, stuck, text="c"):
                pass

    play(act, replace(CONFIG, failures_to_cut_off=1000))


def test_no_more_calls_than_places_run_at_a_time() -> None:
    now, most = 0, 0

    async def work() -> None:
        """Work."""
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    async def act(runner: ToolRunner) -> None:
        await asyncio.gather(*(told(runner, work) for _ in range(9)))
        assert (most, figures(runner, work).calls) == (2, 9)

    play(act)


def test_a_tool_that_keeps_failing_is_cut_off_says_so_and_comes_back() -> None:
    clock = Clock()

    async def act() -> None:
        runner = ToolRunner(CONFIG, clock=clock)
        fetch = flaky(4, idempotent=False)
        for _ in range(3):
            assert "failed: ConnectionError" in await told(runner, fetch)
        clock.now_s += 4
        cut = await told(runner, fetch)
        assert cut == "ERROR: fetch keeps failing and is cut off for another 6 s; go on without it"
        clock.now_s += 6
        assert "failed: ConnectionError" in await told(runner, fetch)
        assert "cut off for another 10 s" in await told(runner, fetch)
        clock.now_s += 10
        assert [await told(runner, fetch) for _ in range(2)] == ["here", "here"]
        assert figures(runner, fetch).cut_off == 2

    asyncio.run(act())


def test_a_refusal_is_no_failure_and_bad_arguments_are_not_even_a_call() -> None:
    def divide(by: int) -> float:
        """Divide."""
        if by == 0:
            raise ToolError("division by zero")
        return 1 / by

    async def act(runner: ToolRunner) -> None:
        for _ in range(5):
            assert await told(runner, divide, by=0) == "ERROR: division by zero"
        with pytest.raises(MalformedCall):
            await runner.call(Tool.of(divide), {"by": "x"})
        assert await told(runner, divide, by=2) == "0.5"
        done = figures(runner, divide)
        assert (done.calls, done.refused, done.failures, done.cut_off) == (6, 5, 0, 0)
        assert sum(done.latency.counts) == 6

    play(act)


@pytest.mark.parametrize("error", [SystemExit(1), StopIteration(), KeyboardInterrupt()])
def test_whatever_a_tool_raises_in_its_thread_stays_its_own(error: BaseException) -> None:
    def rude() -> None:
        """Leave."""
        raise error

    async def act(runner: ToolRunner) -> None:
        assert f"rude failed: RuntimeError: {type(error).__name__}" in await told(runner, rude)

    play(act)


def test_one_slow_tool_does_not_hold_up_another() -> None:
    release = threading.Event()

    def slow() -> None:
        """Wait."""
        release.wait(30)

    async def quick() -> str:
        """Answer."""
        return "at once"

    async def act(runner: ToolRunner) -> None:
        waiting = [asyncio.create_task(told(runner, slow)) for _ in range(50)]
        await asyncio.sleep(0)
        assert await told(runner, quick) == "at once"
        release.set()
        await asyncio.gather(*waiting)

    play(act)

"""A caller that goes away in any phase of a turn leaves no slot taken, and frees none that is still in use.

Every test runs twice: with engines that feel the cancellation, and with a border between them as there is
between processes, where the call goes on and only `abort` and `finish` end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engines.client import EngineClient
from engines.cluster import EngineCluster
from engines.context import Context
from engines.engine_loop import EngineLoop
from engines.errors import EngineFailed, TurnFailed
from engines.types import RequestId, SamplingParams, TurnResult
from tests.engines.fakes import (
    Border,
    FaultyTransport,
    Gate,
    GatedStore,
    Parts,
    WatchedRunner,
    random_ids,
    take_turn,
)
from tests.engines.local_cluster import cluster_spec, running_cluster
from tests.engines.tiny_models import save_tiny_model

SAMPLING = SamplingParams(max_tokens=20)
CUT_SHORT_S = 0.1
"""How long a turn that must not end yet is watched."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen2", tmp_path_factory.mktemp("model")))


class Bench:
    """A cluster with a gate in front of every phase, a client of it, and a context."""

    cluster: EngineCluster
    client: EngineClient
    context: Context

    def __init__(self, *, border: bool) -> None:
        self.transport = FaultyTransport()
        self.runners: dict[str, WatchedRunner] = {}
        self.reads, self.writes = Gate(), Gate()
        self.parts = Parts(
            store=lambda store, name: GatedStore(store, reads=self.reads, writes=self.writes),
            transport=lambda real, name: self.transport.around(real) if "prefill" in name else real,
            runner=lambda runner, name: self.runners.setdefault(name, WatchedRunner(runner)),
            peer=lambda part, name: Border(part) if border else part,
        )

    def gate(self, phase: str) -> Gate:
        return {
            "read": self.reads,
            "prefill": self.runners["prefill-0-0"].prefills,
            "transfer": self.transport.gate,
            "copy": self.parts.copies,
            "decode": self.runners["decode-0-0"].decodes,
            "persist": self.writes,
        }[phase]

    async def free_slots(self) -> float:
        return await self.figure("free_slots")

    async def figure(self, name: str) -> float:
        figures: dict[str, float] = await self.cluster.scheduler.figures()
        return figures[name]

    async def first_turn(self) -> None:
        """A finished turn, and more to go on with."""
        await take_turn(self.client, self.context, "first", SAMPLING, 20)
        await self.cluster.pause(30)
        await self.cluster.resume()
        self.context.append(random_ids(12, seed=1))

    def second_turn(self, deadline_s: float = 60.0) -> asyncio.Task[TurnResult]:
        turn = self.client.run_turn(self.context, RequestId("second"), SAMPLING, deadline_s)
        return asyncio.create_task(turn)

    async def in_queue(self) -> None:
        """Return when a turn waits at the scheduler."""
        for _ in range(1000):
            if await self.figure("queue_length"):
                return
            await asyncio.sleep(0)
        raise AssertionError("no turn came to the queue")


Play = Callable[[Bench], Awaitable[None]]


@pytest.fixture(params=[False, True], ids=["in one process", "across a border"])
def on_a_bench(request: pytest.FixtureRequest, model_path: str, tmp_path: Path) -> Callable[[Play], None]:
    """Plays with a cluster; on the way out nothing is taken."""
    bench = Bench(border=request.param)

    async def run(play: Play) -> None:
        async with running_cluster(cluster_spec(model_path, tmp_path), bench.parts.spawn) as bench.cluster:
            bench.client = bench.cluster.client_parts().client()
            bench.context = bench.client.open_context()
            await play(bench)

    return lambda play: asyncio.run(run(play))


async def cancelled(task: asyncio.Task[Any]) -> bool:
    await asyncio.wait([task], timeout=30)
    return task.cancelled()


@pytest.mark.parametrize("phase", ["read", "prefill", "transfer", "copy", "decode"])
def test_the_caller_waits_until_nobody_touches_its_slots_and_then_all_are_free(
    phase: str, on_a_bench: Callable[[Play], None]
) -> None:
    async def play(bench: Bench) -> None:
        await bench.first_turn()
        gate = bench.gate(phase)
        gate.shut()
        task = bench.second_turn()
        await gate.reached()
        free = await bench.free_slots()
        task.cancel()
        await asyncio.wait([task], timeout=CUT_SHORT_S)
        # The read or step cannot be stopped, so the slots are not given back before it has ended.
        assert not task.done()
        if phase not in ("copy", "decode"):  # whose prompt is written already, and what was read for it gone
            assert await bench.free_slots() == free
        gate.open()
        assert await cancelled(task)
        assert len((await bench.second_turn()).token_ids) == 20  # the engines serve on

    on_a_bench(play)


def test_a_turn_cancelled_while_its_prompt_is_written_keeps_those_slots_until_it_is(
    on_a_bench: Callable[[Play], None],
) -> None:
    async def play(bench: Bench) -> None:
        await bench.first_turn()
        bench.writes.shut()
        bench.gate("decode").shut()
        task = bench.second_turn()
        await bench.gate("decode").reached()
        await bench.writes.reached()
        before = await bench.free_slots()
        task.cancel()
        bench.gate("decode").open()
        await asyncio.wait([task], timeout=CUT_SHORT_S)
        assert await bench.figure("placed") == 1
        bench.writes.open()
        assert await cancelled(task)
        assert await bench.free_slots() >= before

    on_a_bench(play)


def test_a_turn_cancelled_in_the_queue_leaves_it_at_once(on_a_bench: Callable[[Play], None]) -> None:
    async def play(bench: Bench) -> None:
        await bench.first_turn()
        await bench.cluster.pause(30)
        task = bench.second_turn()
        await bench.in_queue()
        task.cancel()
        assert await cancelled(task)
        assert await bench.figure("queue_length") == 0
        await bench.cluster.resume()

    on_a_bench(play)


def test_a_turn_cancelled_while_it_waits_for_pending_blocks_leaves_the_queue_at_once(
    on_a_bench: Callable[[Play], None],
) -> None:
    async def play(bench: Bench) -> None:
        bench.writes.shut()
        await take_turn(bench.client, bench.context, "first", SAMPLING, 20)
        bench.context.append([1])
        task = bench.second_turn()
        await bench.in_queue()
        task.cancel()
        assert await cancelled(task)
        assert await bench.figure("queue_length") == 0
        bench.writes.open()

    on_a_bench(play)


def test_a_turn_past_its_deadline_fails_and_leaves_nothing_taken(on_a_bench: Callable[[Play], None]) -> None:
    async def play(bench: Bench) -> None:
        await bench.first_turn()
        bench.gate("decode").shut()
        task = bench.second_turn(deadline_s=0.3)
        await bench.gate("decode").reached()
        await asyncio.wait([task], timeout=0.4)
        bench.gate("decode").open()
        with pytest.raises(TurnFailed, match=r"second was not done within 0\.3 s"):
            await task

    on_a_bench(play)


def test_a_turn_cancelled_the_moment_it_is_placed_leaves_no_slot_taken(
    on_a_bench: Callable[[Play], None],
) -> None:
    # The scheduler has placed it, its answer has not arrived: nobody but `finish` can give the slots back.
    async def play(bench: Bench) -> None:
        await bench.first_turn()
        await bench.cluster.pause(30)
        task = bench.second_turn()
        await bench.in_queue()
        await bench.cluster.resume()
        assert await bench.figure("placed") == 1
        task.cancel()
        assert await cancelled(task)

    on_a_bench(play)


# The engine's loop ------------------------------------------------------------------------------


def with_a_loop(play: Callable[[EngineLoop, Gate], Any]) -> list[str]:
    """Run `play` with a loop that has nothing to do; what it failed with."""
    failures: list[str] = []

    async def run() -> None:
        loop = EngineLoop("engine", lambda: False, failures.append)
        loop.start()
        try:
            await play(loop, Gate())
        finally:
            loop.stop(10)

    asyncio.run(run())
    return failures


def test_a_caller_that_does_not_wait_for_the_loop_does_not_break_it() -> None:
    async def play(loop: EngineLoop, gate: Gate) -> None:
        gate.shut()
        loop.post(gate.pass_through)
        done: list[str] = []
        with pytest.raises(EngineFailed, match=r"engine did not answer within 0\.01 s"):
            await loop.call(lambda: done.append("late"), 0.01)
        cancel = asyncio.create_task(loop.call(lambda: done.append("cancelled"), 10))
        await gate.reached()
        cancel.cancel()
        gate.open()
        assert await cancelled(cancel)
        await loop.call(lambda: done.append("answered"), 10)
        assert done == ["late", "cancelled", "answered"]

    assert with_a_loop(play) == []


def test_an_error_in_a_call_is_the_callers_and_the_loop_goes_on() -> None:
    async def play(loop: EngineLoop, gate: Gate) -> None:
        def fail() -> None:
            raise KeyError("no such weight")

        with pytest.raises(KeyError, match="no such weight"):
            await loop.call(fail, 10)
        assert await loop.call(lambda: 7, 10) == 7

    assert with_a_loop(play) == []


def test_a_step_that_raises_ends_the_loop_and_later_calls_say_why() -> None:
    failures: list[str] = []
    failed = Gate()

    def step() -> bool:
        raise RuntimeError("out of memory")

    def on_failure(failure: str) -> None:
        failures.append(failure)
        failed.pass_through()

    async def run() -> None:
        loop = EngineLoop("engine", step, on_failure)
        loop.start()
        await failed.reached()
        with pytest.raises(EngineFailed, match="engine failed: RuntimeError: out of memory"):
            await loop.call(lambda: 7, 10)

    asyncio.run(run())
    assert failures == ["engine failed: RuntimeError: out of memory"]

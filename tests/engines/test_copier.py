"""Copies beside decoding: in order, told of on the loop, and never in the way of a step."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.cluster import start_cluster
from engines.copier import Copier
from engines.errors import EngineError
from engines.types import RequestId, SamplingParams
from tests.engines.fakes import PATIENCE_S, Gate, Parts, WatchedRunner
from tests.engines.local_cluster import running_cluster
from tests.engines.paced import paced_spec


class Copies:
    """A copier, and the loop's inbox that it tells."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.copier = Copier("copies", torch.device("cpu"), self.inbox.put)
        self.ended: list[Future[Any]] = []

    def copy(self, move: Callable[[], Any]) -> Future[Any]:
        return self.copier.copy(move, self.ended.append)

    def hear(self, num_messages: int) -> None:
        for _ in range(num_messages):
            self.inbox.get(timeout=PATIENCE_S)()


def test_copies_are_made_one_after_another_off_the_callers_thread() -> None:
    copies, gate = Copies(), Gate()
    gate.shut()
    first = copies.copy(lambda: (gate.pass_through(), threading.get_ident())[1])
    second = copies.copy(threading.get_ident)
    assert not second.done()
    gate.open()
    copies.hear(2)
    assert copies.ended == [first, second]
    assert first.result() == second.result() != threading.get_ident()
    copies.copier.close()


def test_a_copy_that_has_not_begun_can_be_cancelled_and_the_loop_is_told() -> None:
    copies, gate = Copies(), Gate()
    gate.shut()
    copies.copy(gate.pass_through)
    second = copies.copy(lambda: None)
    assert second.cancel()
    copies.hear(1)
    assert copies.ended == [second]
    with pytest.raises(CancelledError):
        second.result()
    gate.open()
    copies.copier.close()


def test_the_loop_is_told_of_a_copy_that_fails() -> None:
    copies = Copies()
    copies.copy(lambda: 1 // 0)
    copies.hear(1)
    with pytest.raises(ZeroDivisionError):
        copies.ended[0].result()
    copies.copier.close()


# In an engine -----------------------------------------------------------------------------------


class Bench:
    """A paced cluster whose prompts are copied through a gate, and its decode engine's steps."""

    def __init__(self) -> None:
        self.runners: dict[str, WatchedRunner] = {}
        self.parts = Parts(runner=lambda runner, name: self.runners.setdefault(name, WatchedRunner(runner)))

    @property
    def steps(self) -> list[int]:
        """Rows of each decode step."""
        return [len(tables) for tables in self.runners["decode-0-0"].tables]

    async def until(self, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, self.steps
            await asyncio.sleep(0.005)


def start(client: Any, name: str, max_tokens: int) -> asyncio.Task[Any]:
    context = client.open_context()
    context.append([ord(name[0])] * 40)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return asyncio.create_task(client.run_turn(context, RequestId(name), sampling, 60.0))


def test_a_turn_decodes_on_while_anothers_prompt_is_copied(tmp_path: Path) -> None:
    bench = Bench()

    async def run() -> None:
        async with running_cluster(paced_spec(tmp_path), bench.parts.spawn) as cluster:
            client, copies = cluster.client_parts().client(), bench.parts.copies
            long = start(client, "long", 4000)
            await bench.until(lambda: len(bench.steps) > 3)
            copies.shut()
            short = start(client, "short", 5)
            await copies.reached()
            num_steps = len(bench.steps)
            await bench.until(lambda: len(bench.steps) > num_steps + 20)
            assert set(bench.steps) == {1}
            assert not short.done()
            copies.open()
            assert len((await short).token_ids) == 5
            assert 2 in bench.steps
            long.cancel()
            await asyncio.wait([long], timeout=PATIENCE_S)

    asyncio.run(run())


def test_a_turn_aborted_before_its_copy_begins_ends_at_once_and_its_blocks_are_free(tmp_path: Path) -> None:
    bench = Bench()

    async def run() -> None:
        async with running_cluster(paced_spec(tmp_path), bench.parts.spawn) as cluster:
            client, copies = cluster.client_parts().client(), bench.parts.copies
            decode = cluster.decode_engines["decode-0-0"]
            free_blocks = (await decode.figures())["free_blocks"]
            copies.shut()
            first = start(client, "first", 5)
            await copies.reached()
            second = start(client, "second", 5)
            end_s = time.monotonic() + PATIENCE_S
            while (await decode.figures())["waiting"] < 2:
                assert time.monotonic() < end_s
                await asyncio.sleep(0.005)
            second.cancel()
            await asyncio.wait([second], timeout=PATIENCE_S)
            assert second.cancelled()
            copies.open()
            assert len((await first).token_ids) == 5
            await cluster.pause(30)
            await cluster.resume()
            assert len((await start(client, "third", 2)).token_ids) == 2
            assert (await decode.figures())["free_blocks"] == free_blocks

    asyncio.run(run())


def test_an_engine_that_cannot_copy_a_prompt_fails(tmp_path: Path) -> None:
    bench = Bench()

    async def run() -> None:
        spec = paced_spec(tmp_path)
        spec = replace(spec, scheduler=replace(spec.scheduler, max_attempts=1))
        cluster = await start_cluster(bench.parts.spawn, spec)
        bench.parts.copies.breaks = True
        try:
            with pytest.raises(EngineError, match="the compute NIC broke"):
                await start(cluster.client_parts().client(), "turn", 5)
        finally:
            await cluster.close()

    asyncio.run(run())

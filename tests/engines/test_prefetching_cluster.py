"""Contexts read ahead in a whole paced cluster: turns read less, say the same, and no slot is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engines.client import EngineClient
from engines.cluster import ClusterSpec, EngineCluster
from engines.context import Context
from engines.types import PromptKeys, ReadSide, RequestId, SamplingParams, Weights
from kvstore.keys import WeightsId
from tests.engines.local_cluster import running_cluster, with_store
from tests.engines.paced import next_id, paced_spec

SAMPLING = SamplingParams(max_tokens=9, temperature=0.0)
TURNS = 5


def spec_of(directory: Path, *, prefetch: bool) -> ClusterSpec:
    """Turns are read on the decode side, so that nothing but reads ahead brings blocks into memory here."""
    spec = with_store(paced_spec(directory, prefill_nodes=2), dram_bytes=2 << 20)
    scheduler = replace(
        spec.scheduler, read_plan="dual", read_tie="decode", prefetch=prefetch, prefetch_blocks=3
    )
    return replace(spec, scheduler=scheduler)


class Agent:
    """One conversation, whose every token is checked."""

    def __init__(self, client: EngineClient, name: str, seed: int) -> None:
        self.client, self.name = client, name
        self.context: Context = client.open_context()
        self.hits: list[int] = []
        self._rng = np.random.default_rng(seed)

    @property
    def request_id(self) -> RequestId:
        return RequestId(f"{self.name}/{len(self.hits)}")

    async def take_turn(self) -> None:
        self.context.append([int(token) for token in self._rng.integers(0, 256, 41)])
        result = await self.client.run_turn(self.context, self.request_id, SAMPLING, 30.0)
        self.hits.append(result.hit_tokens)
        for token in result.token_ids:
            assert token == next_id(PromptKeys(self.context.root, ()), self.context.token_ids)
            self.context.append([token])


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    end_s = time.monotonic() + 20
    while not await reached():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.002)


async def num_prefetched(cluster: EngineCluster) -> int:
    return int((await cluster.scheduler.figures())["prefetched_blocks"])


async def converse(cluster: EngineCluster, agent: Agent, *, prefetch: bool) -> None:
    """Every tool takes as long as it takes to read the whole context ahead."""
    for _ in range(TURNS):
        await agent.take_turn()
        async with agent.client.waiting(agent.context, agent.request_id):
            if prefetch:
                # The last token's KV is not made before the next turn.
                await until(partial(_has_read, cluster, (len(agent.context) - 1) // 8))


async def _has_read(cluster: EngineCluster, num_blocks: int) -> bool:
    return await num_prefetched(cluster) >= num_blocks


def test_a_turn_whose_context_was_read_ahead_reads_nothing(tmp_path: Path) -> None:
    async def play(prefetch: bool) -> tuple[list[int], Context, dict[ReadSide, int], int]:
        spec = spec_of(tmp_path / str(prefetch), prefetch=prefetch)
        async with running_cluster(spec) as cluster:
            agent = Agent(cluster.client_parts().client(), "a", 1)
            await converse(cluster, agent, prefetch=prefetch)
            moved = list((await cluster.storage_bytes()).values())
            sides = {
                ReadSide.PREFILL: sum(node.read_prefill_side for node in moved),
                ReadSide.DECODE: sum(node.read_decode_side for node in moved),
                ReadSide.DRAM: sum(node.read_dram for node in moved),
            }
            return agent.hits, agent.context, sides, sum(node.read_ahead for node in moved)

    hits, context, sides, ahead = asyncio.run(play(prefetch=True))
    usual_hits, usual_context, usual_sides, usual_ahead = asyncio.run(play(prefetch=False))
    assert (hits, context.token_ids) == (usual_hits, usual_context.token_ids)
    assert hits[-1] > 100
    assert (sides[ReadSide.PREFILL], sides[ReadSide.DECODE]) == (0, 0)
    assert sides[ReadSide.DRAM] == usual_sides[ReadSide.DECODE] > 0
    assert (usual_sides[ReadSide.DRAM], usual_ahead) == (0, 0)
    assert ahead > 0


async def keep_waiting(agent: Agent) -> None:
    async with agent.client.waiting(agent.context, agent.request_id):
        await asyncio.Event().wait()


@pytest.mark.parametrize("ends", ["abort", "pause", "weights"])
def test_an_agent_that_never_goes_on_leaves_nothing_behind(ends: str, tmp_path: Path) -> None:
    """Slots and holds: the cluster's way out and the scheduler's books say so."""

    async def play() -> None:
        async with running_cluster(spec_of(tmp_path, prefetch=True)) as cluster:
            agents = [Agent(cluster.client_parts().client(), name, seed) for seed, name in enumerate("abc")]
            for agent in agents:
                await agent.take_turn()
            waiting = [asyncio.ensure_future(keep_waiting(agent)) for agent in agents]
            await until(partial(_has_read, cluster, 1))
            if ends == "pause":
                await cluster.pause(20)
                await cluster.resume()
            elif ends == "weights":
                await cluster.pause(20)
                newer = Weights(1, WeightsId("weights-1"))
                await asyncio.gather(*(engine.set_weights(newer) for engine in cluster.engines))
                await cluster.scheduler.set_weights(newer)
                await cluster.resume()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await until(partial(_nobody_waits, cluster))
            cluster.scheduler.check()
            for agent in agents:
                await agent.take_turn()

    asyncio.run(play())


async def _nobody_waits(cluster: EngineCluster) -> bool:
    figures = await cluster.scheduler.figures()
    return (figures["waiting_contexts"], figures["held_blocks"]) == (0, 0)

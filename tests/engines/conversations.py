"""A conversation of eight turns on a one-process cluster: what tests of failures compare with a clean one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from engines.client import EngineClient
from engines.cluster import ClusterSpec, EngineCluster
from engines.context import Context
from engines.measured import NodeBytes
from engines.types import SamplingParams, TurnResult
from tests.engines.fakes import Parts, take_turn
from tests.engines.local_cluster import running_cluster

SAMPLING = SamplingParams(max_tokens=10)
TOLERANCE = 1e-4
Between = Callable[[EngineCluster, int], Awaitable[None]]
"""Called after each turn, when all it makes is stored."""


@dataclass
class Conversation:
    """Eight turns, and what the cluster said at their end."""

    turns: list[TurnResult]
    figures: dict[str, float]
    """The scheduler's."""
    bad_reads: dict[str, int]
    """Of the prefill node."""
    moved: NodeBytes = field(default_factory=NodeBytes)
    """By the prefill node."""

    @property
    def hit_tokens(self) -> list[int]:
        return [turn.hit_tokens for turn in self.turns]


async def nothing(cluster: EngineCluster, turn: int) -> None:
    pass


async def conversation(
    spec: ClusterSpec, parts: Parts | None = None, between: Between = nothing
) -> Conversation:
    """Eight turns on a cluster of their own."""
    async with running_cluster(spec, (parts or Parts()).spawn) as cluster:
        return await converse(cluster, between)


async def converse(cluster: EngineCluster, between: Between = nothing, seed: int = 0) -> Conversation:
    """Eight turns on `cluster`; those of another seed are about something else."""
    turns = await eight_turns(cluster, cluster.client_parts().client(), between, seed)
    node = cluster.nodes["prefill-0"]
    return Conversation(turns, await cluster.scheduler.figures(), await node.bad_reads(), await node.moved())


async def eight_turns(
    cluster: EngineCluster, client: EngineClient, between: Between, seed: int = 0
) -> list[TurnResult]:
    context = client.open_context()
    turns = []
    for turn in range(8):
        turns.append(await one_turn(client, context, turn, seed))
        await cluster.pause(30)
        await between(cluster, turn)
        await cluster.resume()
    return turns


async def one_turn(client: EngineClient, context: Context, turn: int, seed: int = 0) -> TurnResult:
    name = f"turn-{turn}" if seed == 0 else f"turn-{turn}-of-{seed}"
    return await take_turn(client, context, name, SAMPLING, 20 if turn == 0 else 9)


def assert_same(turns: Sequence[TurnResult], clean: Sequence[TurnResult]) -> None:
    """The same tokens, and the same logprobs but for rounding."""
    assert [turn.token_ids for turn in turns] == [turn.token_ids for turn in clean]
    for turn, expected in zip(turns, clean, strict=True):
        assert list(turn.logprobs) == pytest.approx(list(expected.logprobs), abs=TOLERANCE)

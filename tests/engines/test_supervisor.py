"""Parts that die and are brought back: the conversation goes on with the tokens it would have had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.cluster import ClusterSpec, EngineCluster, start_cluster
from engines.model.runner import NamedArray
from engines.types import TurnResult, Weights
from kvstore.keys import WeightsId
from tests.engines.conversations import assert_same, eight_turns, nothing
from tests.engines.local_cluster import cluster_spec, running_cluster
from tests.engines.restartable import restart, spawn_restartable
from tests.engines.tiny_models import save_tiny_model, tiny_model

DEADLINE_S = 60.0
NEW = Weights(1, WeightsId("weights-1"))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


async def new_weights() -> AsyncIterator[list[NamedArray]]:
    model = tiny_model("qwen3", seed=1)
    for name, parameter in model.named_parameters():
        yield [(name, parameter.detach().numpy())]


@pytest.fixture(scope="module")
def clean(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> list[TurnResult]:
    """The conversation under the new weights, where nothing breaks."""

    async def run() -> list[TurnResult]:
        async with running_cluster(cluster_spec(model_path, tmp_path_factory.mktemp("clean"))) as cluster:
            await cluster.update_weights(NEW, new_weights(), DEADLINE_S)
            return await eight_turns(cluster, cluster.client_parts().client(), nothing)

    return asyncio.run(run())


@asynccontextmanager
async def supervised(spec: ClusterSpec) -> AsyncIterator[EngineCluster]:
    """A cluster that brings its parts back; its watch looks often and waits long."""
    scheduler = replace(spec.scheduler, heartbeat_s=0.02, heartbeat_deadline_s=20.0)
    cluster = await start_cluster(spawn_restartable, replace(spec, scheduler=scheduler), restart)
    try:
        yield cluster
        await cluster.pause(DEADLINE_S)
        cluster.scheduler.check()
    finally:
        await cluster.close()


async def is_back(cluster: EngineCluster, name: str, num_restarts: int = 1) -> None:
    """Return when the part has been brought back so often, and all serve."""
    watch = cluster.supervisor.watch
    async with asyncio.timeout(DEADLINE_S):
        while watch.health(name).num_restarts < num_restarts or watch.absent:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("victim", ["prefill-0-0", "decode-0-0", "prefill-0", "decode-0", "scheduler"])
def test_a_part_that_died_is_brought_back_with_the_current_weights_and_no_token_differs(
    victim: str, model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    async def run() -> list[TurnResult]:
        async with supervised(cluster_spec(model_path, tmp_path)) as cluster:
            parts = {**cluster.nodes, **cluster.prefill_engines, **cluster.decode_engines}
            await cluster.update_weights(NEW, new_weights(), DEADLINE_S)

            async def kill(cluster: EngineCluster, turn: int) -> None:
                if turn == 2:
                    await {**parts, "scheduler": cluster.scheduler}[victim].kill()
                    await is_back(cluster, victim)

            turns = await eight_turns(cluster, cluster.client_parts().client(), kill)
            figures = cluster.supervisor.watch.figures()
            assert figures["restarts"] >= 1
            assert figures["healthy"] == 5
            return turns

    turns = asyncio.run(run())
    assert_same(turns, clean)
    assert {turn.weights_version for turn in turns} == {1}
    assert all(turn.hit_tokens > 0 for turn in turns[3:]), "what was stored before is found again"


@pytest.mark.parametrize("victim", ["prefill-0-0", "decode-0-0", "prefill-0", "decode-0", "scheduler"])
def test_a_turn_under_way_outlives_every_part_it_needs(
    victim: str, model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    async def run() -> list[TurnResult]:
        spec = cluster_spec(model_path, tmp_path)
        spec = replace(spec, scheduler=replace(spec.scheduler, max_attempts=50))
        async with supervised(spec) as cluster:
            parts = {**cluster.nodes, **cluster.prefill_engines, **cluster.decode_engines}
            await cluster.update_weights(NEW, new_weights(), DEADLINE_S)
            client = cluster.client_parts().client()
            talking = asyncio.create_task(eight_turns(cluster, client, nothing))
            for number in range(1, 3):
                await asyncio.sleep(0.15 * number)  # wherever it is then
                await {**parts, "scheduler": cluster.scheduler}[victim].kill()
                await is_back(cluster, victim, number)
            return await asyncio.wait_for(talking, DEADLINE_S)

    assert_same(asyncio.run(run()), clean)


def test_an_engine_that_nobody_can_give_the_weights_serves_after_the_next_update(
    model_path: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with supervised(cluster_spec(model_path, tmp_path)) as cluster:
            await cluster.update_weights(NEW, new_weights(), DEADLINE_S)
            engines = {**cluster.prefill_engines, **cluster.decode_engines}
            for engine in engines.values():
                await engine.kill()
            watch = cluster.supervisor.watch
            async with asyncio.timeout(DEADLINE_S):
                while set(watch.ailing.values()) != {"stale"} or len(watch.ailing) != 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            newer = Weights(2, WeightsId("weights-2"))
            await cluster.update_weights(newer, new_weights(), DEADLINE_S)
            await is_back(cluster, "prefill-0-0")
            turns = await eight_turns(cluster, cluster.client_parts().client(), nothing)
            assert {turn.weights_version for turn in turns} == {2}

    asyncio.run(run())


def test_the_weights_of_an_engine_are_those_that_were_loaded(model_path: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with supervised(cluster_spec(model_path, tmp_path)) as cluster:
            await cluster.update_weights(NEW, new_weights(), DEADLINE_S)
            engine = cluster.prefill_engines["prefill-0-0"]  # type: ignore[index]
            sizes = await engine.weight_sizes()
            expected = dict(tiny_model("qwen3", seed=1).named_parameters())
            assert sizes.keys() == expected.keys()
            for name, array in await engine.read_weights(list(sizes)):
                assert torch.equal(torch.from_numpy(array), expected[name]), name
                assert array.nbytes == sizes[name]

    asyncio.run(run())

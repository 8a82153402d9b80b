"""Which blocks a decode engine writes, and how many at once, through a whole one-process cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.client import EngineClient
from engines.cluster import ClusterSpec
from engines.types import FinishReason, RequestId, SamplingParams, TurnResult
from kvstore.errors import StoreError
from kvstore.store import BlockLocation, BlockStore, BlockWrite
from tests.engines.fakes import Gate, GatedStore, Parts, random_ids, take_turn
from tests.engines.local_cluster import cluster_spec, running_cluster, with_store
from tests.engines.tiny_models import save_tiny_model

BLOCK_BYTES = 3 * 8 * 256
"""Of the tiny qwen2 and blocks of 8: 3 layers, keys and values of 2 heads of 16 float32."""
PACK_BLOCKS = 3
GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen2", tmp_path_factory.mktemp("model")))


def packed(
    model_path: str, directory: Path, pack_blocks: int = PACK_BLOCKS, **changes: object
) -> ClusterSpec:
    spec = cluster_spec(model_path, directory, **changes)
    return with_store(spec, pack_bytes=(pack_blocks - 1) * BLOCK_BYTES + 1)


class WatchedStore(GatedStore):
    """The real store; it remembers how many blocks each call wrote, and may fail some."""

    def __init__(self, store: BlockStore, writes: Gate) -> None:
        super().__init__(store, reads=Gate(), writes=writes)
        self.batches: list[int] = []
        self.num_to_fail = 0

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        self.batches.append(len(writes))
        if self.num_to_fail > 0:
            self.num_to_fail -= 1
            raise StoreError("the store broke")
        return super().write(writes, deadline_s)


class Watched:
    """The stores of a cluster whose parts are `parts`."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.stores: dict[str, WatchedStore] = {}
        self.parts = Parts(store=self._watch)

    def _watch(self, store: Any, name: str) -> WatchedStore:
        return self.stores.setdefault(name, WatchedStore(store, self.gate))

    @property
    def decode(self) -> WatchedStore:
        return self.stores["decode-0"]


async def generate(
    client: EngineClient, name: str, prompt: Sequence[int], max_tokens: int, **sampling: Any
) -> TurnResult:
    context = client.open_context()
    context.append(prompt)
    return await client.run_turn(
        context, RequestId(name), SamplingParams(max_tokens=max_tokens, **sampling), 60.0
    )


def test_blocks_that_a_turn_generates_leave_in_packs_and_the_rest_with_its_end(
    model_path: str, tmp_path: Path
) -> None:
    # 20 tokens of prompt are 2 blocks. 61 generated: KV of 80 tokens in all, 10 blocks, 8 of them generated.
    watched = Watched()

    async def run() -> list[TurnResult]:
        async with running_cluster(packed(model_path, tmp_path), watched.parts.spawn) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            first = await take_turn(client, context, "first", SamplingParams(max_tokens=61), 20)
            second = await take_turn(client, context, "second", SamplingParams(max_tokens=1), 3)
            return [first, second]

    first, second = asyncio.run(run())
    assert (len(first.token_ids), first.finish_reason) == (61, FinishReason.LENGTH)
    assert sorted(watched.decode.batches) == [2, 2, 3, 3]
    assert second.hit_tokens == 80


@pytest.mark.parametrize("pack_blocks", [1, 2, 8])
def test_a_crowded_pool_is_no_dead_end_and_no_token_depends_on_packs(
    model_path: str, tmp_path: Path, pack_blocks: int
) -> None:
    # Six turns of 8 blocks in a pool of 12: all but one are preempted, most of them more than once.
    async def run(directory: Path, pool_blocks: int) -> list[list[int]]:
        spec = packed(model_path, directory, pack_blocks, decode_kv_bytes=pool_blocks * BLOCK_BYTES)
        spec = replace(spec, scheduler=replace(spec.scheduler, hbm_need="prompt"))
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()
            turns = [generate(client, f"t{i}", random_ids(12, seed=i), 50) for i in range(6)]
            results = await asyncio.gather(*turns)
            preempted = (await cluster.decode_engines["decode-0-0"].figures())["preempted"]
            assert (preempted > 0) == (pool_blocks < 100)
            return [list(result.token_ids) for result in results]

    assert asyncio.run(run(tmp_path / "crowded", 12)) == asyncio.run(run(tmp_path / "roomy", 200))


def test_blocks_that_are_stored_already_are_not_written_again(model_path: str, tmp_path: Path) -> None:
    # A prompt of 3 whole blocks: its last one is computed again, as one token at least must be.
    watched = Watched()

    async def run() -> tuple[list[TurnResult], int, int]:
        async with running_cluster(packed(model_path, tmp_path), watched.parts.spawn) as cluster:
            client, prompt = cluster.client_parts().client(), random_ids(24, seed=1)
            first = await generate(client, "first", prompt, 41, **GREEDY)
            await cluster.pause(30)
            await cluster.resume()
            written = (await cluster.storage_bytes())["decode-0"].written
            second = await generate(client, "second", prompt, 41, **GREEDY)
            await cluster.pause(30)
            await cluster.resume()
            return [first, second], written, (await cluster.storage_bytes())["decode-0"].written

    (first, second), written, in_the_end = asyncio.run(run())
    assert first.token_ids == second.token_ids
    assert second.hit_tokens == 16
    assert written == in_the_end == 8 * BLOCK_BYTES


def test_a_block_another_turn_is_still_writing_is_written_all_the_same(
    model_path: str, tmp_path: Path
) -> None:
    """That write may fail; one that is done cannot."""
    watched = Watched()

    async def run() -> TurnResult:
        spec = packed(model_path, tmp_path)
        async with running_cluster(spec, watched.parts.spawn) as cluster:
            client, prompt = cluster.client_parts().client(), random_ids(7, seed=1)
            watched.gate.shut()
            first = await generate(client, "first", prompt, 18, **GREEDY)
            await watched.gate.reached()
            second = await generate(client, "second", prompt, 18, **GREEDY)
            assert first.token_ids == second.token_ids
            watched.gate.open()
            context = client.open_context()
            context.append([*prompt, *first.token_ids])
            return await client.run_turn(context, RequestId("third"), SamplingParams(max_tokens=1), 60.0)

    assert asyncio.run(run()).hit_tokens == 24
    assert watched.decode.batches == [3, 3]


def test_a_pack_that_could_not_be_written_is_a_miss_and_its_slots_come_back(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched()

    async def run() -> list[TurnResult]:
        async with running_cluster(packed(model_path, tmp_path), watched.parts.spawn) as cluster:
            client = cluster.client_parts().client()
            watched.decode.num_to_fail = 2
            # Two packs fail, of a reserve of two: the third needs their slots.
            first = await generate(client, "first", random_ids(7, seed=1), 82)
            await cluster.pause(30)
            await cluster.resume()
            context = client.open_context()
            context.append([*random_ids(7, seed=1), *first.token_ids])
            second = await client.run_turn(context, RequestId("second"), SamplingParams(max_tokens=1), 60.0)
            return [first, second]

    first, second = asyncio.run(run())
    assert len(first.token_ids) == 82
    assert second.hit_tokens == 0
    assert "the store broke" in caplog.text

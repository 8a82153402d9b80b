"""The decode engine's pool and its persistence, through a whole one-process cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.client import EngineClient
from engines.types import FinishReason, RequestId, SamplingParams, TurnResult
from kvstore.store import BlockStore
from tests.engines.fakes import (
    PATIENCE_S,
    Gate,
    GatedStore,
    Parts,
    WatchedDecode,
    WatchedRunner,
    random_ids,
    take_turn,
)
from tests.engines.local_cluster import cluster_spec, running_cluster, with_store
from tests.engines.tiny_models import save_tiny_model

BLOCK_BYTES = 3 * 8 * 256
"""Of the tiny qwen2 and blocks of 8: 3 layers, keys and values of 2 heads of 16 float32."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen2", tmp_path_factory.mktemp("model")))


# The pool ---------------------------------------------------------------------------------------

# Name -> tokens of the prompt, most tokens to generate. Six turns fill a pool of 18 blocks; when every other
# one has ended the free blocks lie in three places, and the newcomer needs all nine of them.
SIX = {f"t{i}": (17, 8 if i % 2 == 0 else 2) for i in range(6)}
NEWCOMER = {"newcomer": (70, 3)}


def start_all(client: EngineClient, plans: Mapping[str, tuple[int, int]]) -> list[asyncio.Task[TurnResult]]:
    async def one(name: str, prompt_tokens: int, max_tokens: int) -> TurnResult:
        context = client.open_context()
        context.append(random_ids(prompt_tokens, seed=sum(name.encode())))
        sampling = SamplingParams(max_tokens=max_tokens)
        return await client.run_turn(context, RequestId(name), sampling, 60.0)

    return [asyncio.create_task(one(name, *plan)) for name, plan in plans.items()]


def hold(gate: Gate) -> Iterator[Any]:
    """Weights that do not come before the gate opens: until then the engine takes no step."""
    gate.pass_through()
    yield from ()


def test_a_turn_that_only_fits_scattered_blocks_decodes_the_same_tokens(
    model_path: str, tmp_path: Path
) -> None:
    runners: dict[str, WatchedRunner] = {}

    def watched(runner: Any, name: str) -> WatchedRunner:
        return runners.setdefault(name, WatchedRunner(runner))

    def peer(part: Any, name: str) -> Any:
        # The scheduler is to send the newcomer while the pool is full.
        return WatchedDecode(part, kv_tokens=1000) if name.startswith("decode") else part

    async def crowded() -> list[TurnResult]:
        spec = cluster_spec(model_path, tmp_path / "crowded", decode_kv_bytes=18 * BLOCK_BYTES)
        async with running_cluster(spec, Parts(runner=watched, peer=peer).spawn) as cluster:
            client, decode = cluster.client_parts().client(), cluster.decode_engines["decode-0-0"]
            events, steps = asyncio.get_running_loop(), Gate()

            def wait_for_copies() -> None:
                """Every turn that has blocks shares the step: the newcomer's are free when six have run."""
                six_ran = any(len(rows) == 6 for rows in runners["decode-0-0"].tables)
                copied = (27 if six_ran else 18) * BLOCK_BYTES
                end_s = time.monotonic() + PATIENCE_S
                while (
                    asyncio.run_coroutine_threadsafe(decode.moved_bytes(), events).result()["host_to_device"]
                    < copied
                ):
                    assert time.monotonic() < end_s
                    time.sleep(0.001)

            runners["decode-0-0"].before_decode = wait_for_copies
            steps.shut()
            held = asyncio.create_task(decode.load_weights(hold(steps)))
            tasks = []
            # One after another, so that their blocks are in order in the pool.
            for name, plan in (SIX | NEWCOMER).items():
                tasks += start_all(client, {name: plan})
                await decode.hand_overs.acquire()
            steps.open()
            await held
            results = [await task for task in tasks]
            counts = await decode.counts()
            assert (counts.prompt, counts.first) == (0, 0)
            assert (await decode.figures())["preempted"] == 0
            return results

    async def roomy() -> list[TurnResult]:
        async with running_cluster(cluster_spec(model_path, tmp_path / "roomy")) as cluster:
            tasks = start_all(cluster.client_parts().client(), SIX | NEWCOMER)
            return [await task for task in tasks]

    results, expected = asyncio.run(crowded()), asyncio.run(roomy())
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    tables = next(rows for rows in runners["decode-0-0"].tables if any(len(table) == 9 for table in rows))
    newcomers = next(table for table in tables if len(table) == 9)
    others = [block for table in tables if table is not newcomers for block in table]
    assert len(tables) == 4
    assert sum(min(newcomers) < block < max(newcomers) for block in others) >= 6


# Following ------------------------------------------------------------------------------------------


def test_a_turn_is_followed_token_by_token_until_it_ends(model_path: str, tmp_path: Path) -> None:
    heard: list[list[int]] = []

    async def run() -> TurnResult:
        async with running_cluster(cluster_spec(model_path, tmp_path)) as cluster:
            client = cluster.client_parts().client()
            with client.following(RequestId("followed"), lambda token_ids: heard.append(list(token_ids))):
                result = await take_turn(
                    client, client.open_context(), "followed", SamplingParams(max_tokens=30), 20
                )
            (decode,) = cluster.decode_engines.values()
            assert await decode.generated(RequestId("followed#1"), 1, PATIENCE_S) is None
            return result

    result = list(asyncio.run(run()).token_ids)
    assert len(heard) > 1
    assert [len(told) for told in heard] == sorted({len(told) for told in heard})
    assert all(told == result[: len(told)] for told in heard)


# Persisting -------------------------------------------------------------------------------------


def gated_writes(writes: Gate) -> Parts:
    def store(real: BlockStore, name: str) -> GatedStore:
        return GatedStore(real, reads=Gate(), writes=writes)

    return Parts(store=store)


def test_a_turn_that_its_first_token_ends_is_only_persisted_and_its_next_turn_hits_it(
    model_path: str, tmp_path: Path
) -> None:
    async def run() -> list[TurnResult]:
        async with running_cluster(cluster_spec(model_path, tmp_path)) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            first = await take_turn(client, context, "first", SamplingParams(max_tokens=1), 36)
            counts = (await cluster.token_counts())["decode-0-0"]
            assert counts.decode == 0
            second = await take_turn(client, context, "second", SamplingParams(max_tokens=5), 9)
            return [first, second]

    first, second = asyncio.run(run())
    assert (len(first.token_ids), first.finish_reason) == (1, FinishReason.LENGTH)
    assert (first.ttst_s, first.tpot_s) == (None, None)
    assert second.hit_tokens == 32


def test_blocks_still_being_written_are_waited_for_and_hit(model_path: str, tmp_path: Path) -> None:
    # 30 tokens and 18 generated: the pool held 47, so 5 blocks are full, 2 of them generated.
    writes = Gate()

    async def run() -> list[TurnResult]:
        async with running_cluster(cluster_spec(model_path, tmp_path), gated_writes(writes).spawn) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            writes.shut()
            first = await take_turn(client, context, "first", SamplingParams(max_tokens=18), 30)
            # Nothing durable stands before the turn's end.
            assert (await cluster.storage_bytes())["decode-0"].written == 0
            task = asyncio.create_task(take_turn(client, context, "second", SamplingParams(max_tokens=5), 9))
            await asyncio.wait([task], timeout=0.1)
            assert not task.done()
            writes.open()
            return [first, await task]

    first, second = asyncio.run(run())
    assert len(first.token_ids) == 18
    assert second.hit_tokens == 40
    assert second.phases.persist_wait > 0.05
    assert second.phases.total == pytest.approx(second.duration_s, rel=0.01)


def test_past_the_deadline_a_block_still_being_written_is_a_miss(model_path: str, tmp_path: Path) -> None:
    writes = Gate()

    async def run() -> TurnResult:
        spec = cluster_spec(model_path, tmp_path)
        spec = replace(spec, scheduler=replace(spec.scheduler, pending_deadline_s=0.05))
        async with running_cluster(spec, gated_writes(writes).spawn) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            writes.shut()
            await take_turn(client, context, "first", SamplingParams(max_tokens=18), 30)
            second = await take_turn(client, context, "second", SamplingParams(max_tokens=5), 9)
            writes.open()
            return second

    assert asyncio.run(run()).hit_tokens == 0


def test_a_block_of_an_ended_turn_is_free_once_it_is_copied_out(model_path: str, tmp_path: Path) -> None:
    # 4 generated blocks and 2 reserve slots: 2 blocks stay in the pool until a write ends.
    writes = Gate()

    async def run() -> tuple[float, float]:
        spec = with_store(cluster_spec(model_path, tmp_path, decode_kv_bytes=20 * BLOCK_BYTES), pack_bytes=1)
        async with running_cluster(spec, gated_writes(writes).spawn) as cluster:
            client, decode = cluster.client_parts().client(), cluster.decode_engines["decode-0-0"]
            writes.shut()
            await take_turn(client, client.open_context(), "first", SamplingParams(max_tokens=33), 8)
            held = (await decode.figures())["free_blocks"]
            writes.open()
            await cluster.pause(30)
            await cluster.resume()
            # Whatever the engine had to do for the first turn is done before a second one ends.
            await take_turn(client, client.open_context(), "second", SamplingParams(max_tokens=2), 5)
            return held, (await decode.figures())["free_blocks"]

    assert asyncio.run(run()) == (18, 20)

"""A prompt that is computed in chunks: the same tokens as in one piece, whatever becomes of it in between.

Chunks are cut by `prefill_batch_tokens` here, which does not depend on how fast the machine is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from engines.cluster import ClusterSpec, EngineCluster, start_cluster
from engines.errors import RequestRefused
from engines.measured import Forward
from engines.model.runner import PrefillRow
from engines.scheduling.estimate import PromptWork
from engines.types import RequestId, SamplingParams, TurnResult
from tests.engines.conversations import SAMPLING, TOLERANCE, assert_same
from tests.engines.fakes import FaultyTransport, Gate, Parts, take_turn
from tests.engines.local_cluster import SCHEDULER, cluster_spec, running_cluster
from tests.engines.paced import PROFILE, SPEC, paced_spec
from tests.engines.tiny_models import NAMES, save_tiny_model

BLOCK = 8
SPARSE = "deepseek_v32"
APPENDED = (45, 3, 1, 100, 24, 61)
"""Turns with hits of no block, few and many, that end in and on block borders."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen2", tmp_path_factory.mktemp("model")))


class RowsRunner:
    """A runner that keeps what it was to compute, and may break at a chunk."""

    def __init__(self, runner: Any) -> None:
        self.batches: list[list[PrefillRow]] = []
        self.gate = Gate()
        self.gate_at: int | None = None
        """The batch that stops at the gate, counted from 0."""
        self.break_at: int | None = None
        self.on_break: Callable[[], None] = lambda: None
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def prefill(self, rows: Sequence[PrefillRow], feed: Any) -> Any:
        self.batches.append(list(rows))
        if len(self.batches) - 1 == self.gate_at:
            self.gate.pass_through()
        if len(self.batches) - 1 == self.break_at:
            self.on_break()
            raise RuntimeError("the engine died between two chunks")
        return self._runner.prefill(rows, feed)


def with_scheduler(spec: ClusterSpec, **changes: Any) -> ClusterSpec:
    return replace(spec, scheduler=replace(SCHEDULER, **changes))


async def turns(spec: ClusterSpec, parts: Parts) -> tuple[list[TurnResult], dict[str, float], int]:
    """A conversation of six turns, and what the prefill engine says at its end."""
    async with running_cluster(spec, parts.spawn) as cluster:
        client, results = cluster.client_parts().client(), []
        context = client.open_context()
        for number, appended in enumerate(APPENDED):
            results.append(await take_turn(client, context, f"turn-{number}", SAMPLING, appended))
            await cluster.pause(30)
            await cluster.resume()
        engine = cluster.prefill_engines["prefill-0-0"]
        return results, await engine.figures(), await engine.peak_resident_layers()


def watched() -> tuple[dict[str, RowsRunner], Parts]:
    runners: dict[str, RowsRunner] = {}
    return runners, Parts(runner=lambda runner, name: runners.setdefault(name, RowsRunner(runner)))


@torch.no_grad()
def assert_as_transformers(path: str, rows: Sequence[PrefillRow], results: Sequence[TurnResult]) -> None:
    """The logprobs of a conversation are those of transformers fed the same chunks at the same borders.

    Which keys sparse attention picks among equals depends on the shape it is called with.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    cache, chunks = DynamicCache(config=model.config), iter(rows)
    for result in results:
        end = result.hit_tokens
        if cache.get_seq_length() > end:
            cache.crop(end - cache.get_seq_length())
        while end < result.prompt_tokens:
            chunk = next(chunks)
            assert chunk.hit_tokens == end == cache.get_seq_length()
            fed = torch.tensor([list(chunk.token_ids)])
            logits = model(fed, past_key_values=cache, use_cache=True).logits[0, -1]
            end += len(chunk.token_ids)
        for token, logprob in zip(result.token_ids, result.logprobs, strict=True):
            assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=TOLERANCE)
            logits = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]


@pytest.mark.parametrize("read_plan", ["basic", "split"])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_give_the_tokens_of_one_piece(name: str, read_plan: Any, tmp_path: Path) -> None:
    path = str(save_tiny_model(name, tmp_path / "model"))
    uncut = with_scheduler(cluster_spec(path, tmp_path / "whole"), batching="count")
    whole, figures, _ = asyncio.run(turns(uncut, Parts()))
    assert figures["cut_rows"] == 0
    assert len({turn.hit_tokens for turn in whole}) > 4
    for limit in (BLOCK, 5 * BLOCK):
        runners, parts = watched()
        spec = cluster_spec(path, tmp_path / f"chunks-{limit}", prefill_batch_tokens=limit)
        chunked, figures, peak = asyncio.run(turns(with_scheduler(spec, read_plan=read_plan), parts))
        rows = [row for batch in runners["prefill-0-0"].batches for row in batch]
        assert_as_transformers(path, rows, chunked)
        if name != SPARSE:
            assert_same(chunked, whole)
        assert [turn.hit_tokens for turn in chunked] == [turn.hit_tokens for turn in whole]
        assert figures["rows"] == len(rows)
        assert figures["cut_rows"] == len(rows) - len(APPENDED)
        assert max(len(row.token_ids) for row in rows) <= limit
        assert all(row.hit_tokens % BLOCK == 0 for row in rows)
        assert peak == 2


@pytest.mark.parametrize("name", NAMES)
def test_without_layerwise_prefill_the_tokens_are_the_same(name: str, tmp_path: Path) -> None:
    path = str(save_tiny_model(name, tmp_path / "model"))
    whole, _, _ = asyncio.run(turns(cluster_spec(path, tmp_path / "layerwise"), Parts()))
    runners, parts = watched()
    spec = cluster_spec(path, tmp_path / "whole", prefill_layerwise=False, prefill_batch_tokens=64)
    results, figures, peak = asyncio.run(turns(with_scheduler(spec, read_plan="split"), parts))
    assert_as_transformers(path, [row for batch in runners["prefill-0-0"].batches for row in batch], results)
    if name != SPARSE:
        assert_same(results, whole)
    assert figures["cut_rows"] > 0
    assert peak == 3  # all layers of the tiny model


def test_a_prompt_that_hbm_cannot_hold_is_refused_with_both_sizes(model_path: str, tmp_path: Path) -> None:
    spec = cluster_spec(model_path, tmp_path / "kv", prefill_layerwise=False, prefill_hbm_bytes=50_000)

    async def run() -> None:
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            await take_turn(client, context, "fits", SAMPLING, 60)
            with pytest.raises(RequestRefused, match=r"76800 bytes .* holds 50000; raise engines\."):
                await take_turn(client, context, "does not fit", SAMPLING, 100 - len(context))

    asyncio.run(run())


def test_hbm_bounds_a_batch_without_layerwise_prefill(model_path: str, tmp_path: Path) -> None:
    # Four prompts arrive at once; two of them fit.
    runners, parts = watched()
    spec = cluster_spec(
        model_path,
        tmp_path / "kv",
        prefill_layerwise=False,
        prefill_hbm_bytes=2 * 40 * 768,
        burst_linger_s=0.2,
    )

    async def run() -> None:
        async with running_cluster(spec, parts.spawn) as cluster:
            client = cluster.client_parts().client()
            await asyncio.gather(
                *(take_turn(client, client.open_context(), f"prompt-{i}", SAMPLING, 40) for i in range(4))
            )

    asyncio.run(run())
    assert [len(batch) for batch in runners["prefill-0-0"].batches] == [2, 2]


def test_a_cut_prompt_goes_on_before_those_that_came_after_it(model_path: str, tmp_path: Path) -> None:
    runners, parts = watched()
    spec = cluster_spec(model_path, tmp_path / "kv", prefill_batch_tokens=32)

    async def run() -> list[TurnResult]:
        async with running_cluster(spec, parts.spawn) as cluster:
            client, runner = cluster.client_parts().client(), runners["prefill-0-0"]
            runner.gate_at = 0
            runner.gate.shut()
            long = asyncio.create_task(take_turn(client, client.open_context(), "long", SAMPLING, 100))
            await runner.gate.reached()
            short = asyncio.create_task(take_turn(client, client.open_context(), "short", SAMPLING, 16))
            await _waiting(cluster, 2)
            runner.gate.open()
            return [await long, await short]

    long, short = asyncio.run(run())
    batches = runners["prefill-0-0"].batches
    assert [[len(row.token_ids) for row in batch] for batch in batches] == [[32], [32], [32], [4, 16]]
    assert [batch[0].hit_tokens for batch in batches] == [0, 32, 64, 96]
    for turn in (long, short):
        assert turn.phases.total == pytest.approx(turn.duration_s)
    # The time between two chunks is part of it.
    assert long.phases.other < 0.5 * long.duration_s


def test_a_cut_prompt_that_is_aborted_computes_no_further_chunk(model_path: str, tmp_path: Path) -> None:
    runners, parts = watched()
    spec = cluster_spec(model_path, tmp_path / "kv", prefill_batch_tokens=32)

    async def run() -> TurnResult:
        async with running_cluster(spec, parts.spawn) as cluster:
            client, runner = cluster.client_parts().client(), runners["prefill-0-0"]
            runner.gate_at = 1
            runner.gate.shut()
            turn = asyncio.create_task(take_turn(client, client.open_context(), "gone", SAMPLING, 100))
            await runner.gate.reached()
            turn.cancel()
            await asyncio.sleep(0)
            runner.gate.open()
            with pytest.raises(asyncio.CancelledError):
                await turn
            assert len(runner.batches) == 2
            return await take_turn(client, client.open_context(), "next", SAMPLING, 40)

    # running_cluster sees to it that every slot has come back.
    assert asyncio.run(run()).token_ids


def test_an_engine_that_dies_between_two_chunks_loses_nothing(model_path: str, tmp_path: Path) -> None:
    clean, _, _ = asyncio.run(turns(cluster_spec(model_path, tmp_path / "clean"), Parts()))
    runners, parts = watched()
    spec = cluster_spec(model_path, tmp_path / "kv", prefill_batch_tokens=32, prefill_engines_per_node=2)

    def repair() -> None:
        for runner in runners.values():
            runner.break_at = None

    async def run() -> tuple[TurnResult, dict[str, float]]:
        # Not running_cluster: what the dead engine was at stays quarantined.
        cluster = await start_cluster(parts.spawn, with_scheduler(spec, max_attempts=3))
        try:
            for runner in runners.values():
                runner.break_at, runner.on_break = 1, repair
            client = cluster.client_parts().client()
            result = await take_turn(client, client.open_context(), "turn-0", SAMPLING, APPENDED[0])
            await cluster.pause(30)
            cluster.scheduler.check()
            return result, await cluster.scheduler.figures()
        finally:
            await cluster.close()

    result, figures = asyncio.run(run())
    assert result.num_attempts == 2
    assert figures["placed"] == 0
    assert_same([result], clean[:1])


def test_a_bit_that_flips_on_the_way_back_to_a_later_chunk_is_found(model_path: str, tmp_path: Path) -> None:
    clean, _, _ = asyncio.run(turns(cluster_spec(model_path, tmp_path / "clean"), Parts()))
    transport = FaultyTransport()
    parts = Parts(transport=lambda real, name: transport.around(real) if "prefill" in name else real)
    spec = cluster_spec(model_path, tmp_path / "kv", prefill_batch_tokens=32)

    async def run() -> TurnResult:
        async with running_cluster(spec, parts.spawn) as cluster:
            client = cluster.client_parts().client()
            transport.flip_read = True
            return await take_turn(client, client.open_context(), "turn-0", SAMPLING, APPENDED[0])

    result = asyncio.run(run())
    assert transport.flip_read is False
    assert result.num_attempts == 2
    assert_same([result], clean[:1])


def test_batches_by_quota_calibrate_and_give_the_same_tokens(model_path: str, tmp_path: Path) -> None:
    whole, _, _ = asyncio.run(turns(cluster_spec(model_path, tmp_path / "whole"), Parts()))
    spec = with_scheduler(
        cluster_spec(model_path, tmp_path / "quota"), batching="quota", attention_quota_s=1e-9
    )
    # Nothing fits such a quota: every chunk is one block.
    results, figures, _ = asyncio.run(turns(spec, Parts()))
    assert_same(results, whole)
    num_blocks = sum(-(-(turn.prompt_tokens - turn.hit_tokens) // BLOCK) for turn in results)
    assert figures["forwards"] == figures["rows"] == num_blocks
    assert figures["estimate_mape"] > 0
    assert figures["forward_mape"] > 0


def test_paced_batches_keep_to_the_attention_quota(tmp_path: Path) -> None:
    # Bytes are checked in HBM by the runner, so chunks also fetch back what they should.
    spec = paced_spec(tmp_path, burst_linger_s=0.1)
    quota_s = PROFILE.num_layers * SPEC.step_times.attention_s(PromptWork.of(0, 50))
    spec = with_scheduler(spec, batching="quota", attention_quota_s=quota_s, read_plan="split")
    kept: dict[str, tuple[Forward, ...]] = {}

    async def run() -> dict[str, float]:
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()

            async def converse(name: int) -> None:
                context = client.open_context()
                for turn in range(3):
                    context.append([(31 * name + 7 * turn + i) % 256 for i in range(100 - 40 * turn)])
                    request_id = RequestId(f"{name}/{turn}")
                    result = await client.run_turn(context, request_id, SamplingParams(4, 0.0), 30.0)
                    context.append(result.token_ids)

            await asyncio.gather(*(converse(name) for name in range(3)))
            engine = cluster.prefill_engines["prefill-0-0"]
            kept["prefill"] = engine._runner.forwards
            return await engine.figures()

    figures = asyncio.run(run())
    assert figures["cut_rows"] > 0
    assert figures["rows"] > figures["forwards"]
    assert figures["estimate_mape"] == pytest.approx(0.0, abs=1e-6)
    assert max(forward.attention_s for forward in kept["prefill"]) <= quota_s * (1 + 1e-6)


async def _waiting(cluster: EngineCluster, num_turns: int) -> None:
    """Return when so many turns are at the prefill engine."""
    engine = cluster.prefill_engines["prefill-0-0"]
    async with asyncio.timeout(30):
        while len(engine._turns) < num_turns or len(engine._reads):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)

"""The whole path, placement, SSD, staging, layerwise prefill, hand-over, paged decode, against transformers.

The oracle is the model's own forward with its DynamicCache, fed the same chunks at the same borders.
Positions whose two best logits lie closer than 1e-4 are left out and counted.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from engines.client import EngineClient
from engines.types import RequestId, SamplingParams, TurnResult
from tests.engines.local_cluster import cluster_spec, running_cluster
from tests.engines.tiny_models import NAMES, VOCABULARY, save_tiny_model

TOLERANCE = 1e-4


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


@dataclass
class Oracle:
    """One conversation on transformers alone."""

    model: PreTrainedModel
    num_close: int = 0
    num_compared: int = 0
    cache: DynamicCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = DynamicCache(config=self.model.config)

    @torch.no_grad()
    def check_turn(self, prompt: array[int], result: TurnResult) -> None:
        kept = self.cache.get_seq_length()
        if kept > result.hit_tokens:
            self.cache.crop(result.hit_tokens - kept)
        assert self.cache.get_seq_length() == result.hit_tokens
        fed = torch.tensor([prompt[result.hit_tokens :]], dtype=torch.long)
        for token, logprob in zip(result.token_ids, result.logprobs, strict=True):
            logits = self.model(fed, past_key_values=self.cache, use_cache=True).logits[0, -1]
            best = logits.topk(2).values
            self.num_compared += 1
            if best[0] - best[1] < TOLERANCE:
                self.num_close += 1
            else:
                assert token == int(logits.argmax())
            assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=TOLERANCE)
            fed = torch.tensor([[token]])


def random_ids(num_tokens: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY - 1, (num_tokens,), generator=generator).tolist()


async def converse(
    client: EngineClient, oracle: Oracle, name: str, max_tokens: int, appended: tuple[int, ...]
) -> list[TurnResult]:
    """A conversation of len(appended) turns, each checked against the oracle."""
    context, results = client.open_context(), []
    for turn, num_tokens in enumerate(appended):
        context.append(random_ids(num_tokens, seed=1000 * len(name) + 31 * turn + num_tokens))
        result = await client.run_turn(context, RequestId(f"{name}/{turn}"), greedy(max_tokens), 60.0)
        oracle.check_turn(context.token_ids, result)
        context.append(result.token_ids)
        results.append(result)
    return results


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_of_mixed_conversations_equals_transformers(name: str, tmp_path: Path) -> None:
    # Conversations of unlike lengths run together. Borders: prompts of 1 token, of whole blocks (8, 16, 24),
    # and turns whose context ends on a block; hits of 0, 1 and many blocks.
    path = save_tiny_model(name, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    plans = {
        "a": (21, (40, 3, 17)),
        "bb": (21, (8, 3, 3)),
        "ccc": (9, (1, 24, 8)),
        "dddd": (21, (16, 11, 100)),
    }

    async def run() -> tuple[list[Oracle], list[list[TurnResult]], object, object]:
        async with running_cluster(cluster_spec(str(path), tmp_path / "kv")) as cluster:
            client = cluster.client_parts().client()
            oracles = [Oracle(model) for _ in plans]
            turns = await asyncio.gather(
                *(converse(client, o, n, *p) for o, (n, p) in zip(oracles, plans.items(), strict=True))
            )
            prefill = next(iter(cluster.prefill_engines.values()))
            counts = await cluster.token_counts()
            return oracles, turns, counts, await prefill.peak_resident_layers()

    oracles, conversations, counts, peak_layers = asyncio.run(run())
    results = [result for turns in conversations for result in turns]
    assert sum(o.num_close for o in oracles) <= 0.01 * sum(o.num_compared for o in oracles)
    hits = {result.hit_tokens // 8 for result in results}
    assert {0, 1} <= hits
    assert max(hits) > 4
    prefill, decode = counts["prefill-0-0"], counts["decode-0-0"]
    assert (decode.prompt, decode.first) == (0, 0)
    assert (prefill.first, prefill.decode) == (len(results), 0)
    assert prefill.prompt == sum(result.prompt_tokens - result.hit_tokens for result in results)
    assert decode.decode == sum(len(result.token_ids) - 1 for result in results)
    assert peak_layers == 2


def test_a_prompt_that_is_stored_to_its_last_token_computes_its_last_block_again(tmp_path: Path) -> None:
    path = save_tiny_model("qwen3", tmp_path / "model")

    async def run() -> list[TurnResult]:
        async with running_cluster(cluster_spec(str(path), tmp_path / "kv")) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            context.append(random_ids(32, seed=3))
            return [
                await client.run_turn(context, RequestId(f"again/{i}"), greedy(4), 60.0) for i in range(2)
            ]

    first, second = asyncio.run(run())
    assert (first.hit_tokens, second.hit_tokens) == (0, 24)
    assert first.token_ids == second.token_ids
    assert list(first.logprobs) == pytest.approx(list(second.logprobs), abs=TOLERANCE)


def test_at_temperature_a_request_draws_the_same_tokens_alone_and_in_a_crowd(tmp_path: Path) -> None:
    path = save_tiny_model("llama", tmp_path / "model")
    sampling = SamplingParams(max_tokens=12, temperature=1.0, top_k=50)

    async def run(names: list[str], store: str) -> dict[str, list[int]]:
        async with running_cluster(cluster_spec(str(path), tmp_path / store)) as cluster:
            client = cluster.client_parts().client()

            async def one(name: str) -> list[int]:
                context = client.open_context()
                context.append(random_ids(5 + 3 * int(name), seed=int(name)))
                return list((await client.run_turn(context, RequestId(name), sampling, 60.0)).token_ids)

            return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))

    alone = asyncio.run(run(["3"], "alone"))
    crowd = asyncio.run(run([str(i) for i in range(8)], "crowd"))
    assert crowd["3"] == alone["3"]
    assert len({tuple(tokens) for tokens in crowd.values()}) == 8


def test_a_full_pool_preempts_the_youngest_and_it_resumes_with_the_same_tokens(tmp_path: Path) -> None:
    # Each turn grows to 8 blocks; the pool has 20, so three turns cannot all end in it at once.
    path = save_tiny_model("qwen2", tmp_path / "model")
    sampling = SamplingParams(max_tokens=40, temperature=1.0)
    block_bytes = 3 * 8 * 256

    async def run(num_blocks: int, store: str) -> tuple[list[TurnResult], dict[str, float]]:
        spec = cluster_spec(str(path), tmp_path / store, decode_kv_bytes=num_blocks * block_bytes)
        spec = replace(spec, scheduler=replace(spec.scheduler, hbm_need="prompt"))
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()

            async def one(index: int) -> TurnResult:
                context = client.open_context()
                context.append(random_ids(22, seed=index))
                return await client.run_turn(context, RequestId(f"t{index}"), sampling, 60.0)

            results = await asyncio.gather(*(one(index) for index in range(6)))
            return results, await cluster.decode_engines["decode-0-0"].figures()

    roomy, _ = asyncio.run(run(100, "roomy"))
    tight, figures = asyncio.run(run(20, "tight"))
    assert figures["preempted"] > 0
    assert figures["free_blocks"] == 20
    assert max(result.num_attempts for result in tight) > 1
    assert [result.token_ids for result in tight] == [result.token_ids for result in roomy]
    for one, other in zip(tight, roomy, strict=True):
        assert list(one.logprobs) == pytest.approx(list(other.logprobs), abs=TOLERANCE)

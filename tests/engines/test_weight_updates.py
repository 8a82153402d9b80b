"""New weights between the turns of a context, checked by teacher forcing with the models themselves.

What a turn samples must be what the weights of its version say over the KV that it is said to have used: all
of it of that version (recompute), or the older part as the older weights made it (keep).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from engines.client import EngineClient
from engines.cluster import ClusterSpec, EngineCluster
from engines.context import Context
from engines.model.runner import NamedArray
from engines.types import RequestId, SamplingParams, TurnResult, Weights
from kvstore.keys import WeightsId
from tests.engines.fakes import random_ids
from tests.engines.local_cluster import STORE, cluster_spec, running_cluster
from tests.engines.test_failures import lose_segments
from tests.engines.tiny_models import save_tiny_model, tiny_model

BLOCK = STORE.block_tokens
TOLERANCE = 1e-4
GREEDY = SamplingParams(max_tokens=13, temperature=0.0)
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


@cache
def model_of(version: int) -> PreTrainedModel:
    return tiny_model("qwen3", seed=version)


async def weights_of(version: int) -> AsyncIterator[list[NamedArray]]:
    for name, parameter in model_of(version).named_parameters():
        yield [(name, parameter.detach().numpy())]


async def update(cluster: EngineCluster, version: int) -> None:
    weights = Weights(version, WeightsId(f"weights-{version}"))
    await cluster.update_weights(weights, weights_of(version), DEADLINE_S)


@dataclass
class Talk:
    """A context, what was sampled in it, and who computed which of its tokens."""

    client: EngineClient
    name: str = "talk"
    results: list[TurnResult] = field(default_factory=list)
    contexts: list[list[int]] = field(default_factory=list)
    """After each turn."""

    def __post_init__(self) -> None:
        self.context: Context = self.client.open_context()

    async def turn(self, appended: int = 21) -> TurnResult:
        """The ids that are appended depend on the number of the turn alone."""
        number = len(self.results)
        self.context.append(random_ids(appended, seed=number))
        request_id = RequestId(f"{self.name}/{number}")
        result = await self.client.run_turn(self.context, request_id, GREEDY, DEADLINE_S)
        self.context.append(result.token_ids)
        self.results.append(result)
        self.contexts.append(list(self.context.token_ids))
        return result

    def check(self, number: int, spans: Sequence[tuple[int, int]]) -> None:
        """What was sampled at the turn is what the models say; `spans`: a version, and where what it computed
        ends (the last one's: nowhere)."""
        result, ids = self.results[number], self.contexts[number]
        theirs = logits(ids, [*spans[:-1], (spans[-1][0], len(ids))]).log_softmax(-1)
        first = len(ids) - len(result.token_ids)
        for place, (token, logprob) in enumerate(zip(result.token_ids, result.logprobs, strict=True), first):
            said = theirs[place - 1]
            assert logprob == pytest.approx(float(said[token]), abs=TOLERANCE), (number, place)
            assert float(said[token]) == pytest.approx(float(said.max()), abs=TOLERANCE), (number, place)
        assert result.weights_version == spans[-1][0]


@torch.no_grad()
def logits(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Of every token, each span computed by its version over the KV of those before."""
    kv, start, parts = DynamicCache(), 0, []
    for version, end in spans:
        if end > start:
            part = torch.tensor([ids[start:end]])
            parts.append(model_of(version)(part, past_key_values=kv, use_cache=True).logits[0])
            start = end
    return torch.cat(parts)


def keeping(model_path: str, store: Path) -> ClusterSpec:
    return replace(cluster_spec(model_path, store), keep_kv=True)


def whole_blocks(tokens: int) -> int:
    return tokens // BLOCK * BLOCK


def test_under_recompute_every_token_comes_from_kv_of_its_own_version(
    model_path: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with running_cluster(cluster_spec(model_path, tmp_path)) as cluster:
            client = cluster.client_parts().client()
            talk = Talk(client)
            for _ in range(2):
                await talk.turn()
            await update(cluster, 1)
            for _ in range(2):
                await talk.turn()
            await update(cluster, 2)
            await talk.turn()
        versions = [0, 0, 1, 1, 2]
        for number, version in enumerate(versions):
            talk.check(number, [(version, 0)])
        renewed = [result.renewed_tokens for result in talk.results]
        # All that was computed before the update, but for the last token and what fills no block.
        expected = [whole_blocks(len(talk.contexts[number]) - 1) for number in (1, 3)]
        assert renewed == [0, 0, expected[0], 0, expected[1]]
        assert talk.results[2].hit_tokens == talk.results[4].hit_tokens == 0
        assert talk.results[3].hit_tokens > 0
        assert {result.older_kv_tokens for result in talk.results} == {0}

    asyncio.run(run())


def test_what_another_trajectory_computed_again_need_not_be(model_path: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with running_cluster(cluster_spec(model_path, tmp_path)) as cluster:
            client = cluster.client_parts().client()
            talks = [Talk(client, "one"), Talk(client, "other")]
            for talk in talks:
                await talk.turn()
            await update(cluster, 1)
            one, other = [await talk.turn() for talk in talks]
        assert one.token_ids == other.token_ids
        assert one.renewed_tokens == whole_blocks(len(talks[0].contexts[0]) - 1)
        assert (other.renewed_tokens, other.hit_tokens > 0) == (0, True)
        talks[1].check(1, [(1, 0)])

    asyncio.run(run())


def test_under_keep_the_older_part_stays_and_the_newer_is_its_own(model_path: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with running_cluster(keeping(model_path, tmp_path)) as cluster:
            client = cluster.client_parts().client()
            talk, same = Talk(client), Talk(client, "same")
            for _ in range(2):
                await talk.turn()
                await same.turn()
            await update(cluster, 1)
            first = whole_blocks(len(talk.contexts[1]) - 1)
            kept = await talk.turn()
            assert (kept.hit_tokens, kept.older_kv_tokens, kept.renewed_tokens) == (first, first, 0)
            talk.check(2, [(0, first), (1, 0)])
            own = await talk.turn()
            assert own.hit_tokens == whole_blocks(len(talk.contexts[2]) - 1), "its own newer blocks are hits"
            assert own.older_kv_tokens == first
            talk.check(3, [(0, first), (1, 0)])

            # Another one with the same tokens hits the older part, which is pure, and nothing of the rest.
            for number in (2, 3):
                await same.turn()
                assert list(same.results[number].token_ids) == list(talk.results[number].token_ids)
                same.check(number, [(0, first), (1, 0)])
            assert same.results[2].hit_tokens == first
            # One that begins now hits nothing of either.
            fresh = Talk(client, "fresh")
            fresh.context.append(talk.contexts[3])
            result = await fresh.turn()
            assert (result.hit_tokens, result.older_kv_tokens) == (0, 0)
            fresh.check(0, [(1, 0)])

            await update(cluster, 2)
            second = whole_blocks(len(talk.contexts[3]) - 1)
            again = await talk.turn()
            assert (again.hit_tokens, again.older_kv_tokens) == (second, second)
            talk.check(4, [(0, first), (1, second), (2, 0)])

    asyncio.run(run())


@pytest.mark.parametrize("appended", range(BLOCK))
def test_under_keep_the_place_where_the_newer_part_begins_may_be_anywhere_in_a_block(
    appended: int, model_path: str, tmp_path: Path
) -> None:
    # The last token's KV is never there, and a prompt's last block counts as a miss.
    async def run() -> None:
        async with running_cluster(keeping(model_path, tmp_path)) as cluster:
            talk = Talk(cluster.client_parts().client())
            await talk.turn(40 + appended)
            await update(cluster, 1)
            for number in (1, 2):
                await talk.turn(1)
                first = talk.results[1].older_kv_tokens
                talk.check(number, [(0, first), (1, 0)])
            assert first == whole_blocks(len(talk.contexts[0]) - 1) > 0

    asyncio.run(run())


def test_kept_kv_that_is_lost_is_computed_by_the_weights_of_the_day(model_path: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with running_cluster(keeping(model_path, tmp_path)) as cluster:
            client = cluster.client_parts().client()
            talk, same = Talk(client), Talk(client, "same")
            for each in (talk, same):
                await each.turn()
                await each.turn()
            await update(cluster, 1)
            lose_segments(tmp_path, cluster.layout, cut=True)
            result = await talk.turn()
            assert result.older_kv_tokens == 0
            assert result.renewed_tokens == whole_blocks(len(talk.contexts[1]) - 1)
            talk.check(2, [(1, 0)])
            # What it computed again under an older name is nobody else's.
            other = await same.turn()
            assert other.hit_tokens == 0
            same.check(2, [(1, 0)])

    asyncio.run(run())


def test_a_turn_that_waits_while_weights_change_is_sampled_by_the_new_ones(
    model_path: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with running_cluster(cluster_spec(model_path, tmp_path)) as cluster:
            talk = Talk(cluster.client_parts().client())
            await talk.turn()
            await cluster.pause(DEADLINE_S)
            waiting = asyncio.create_task(talk.turn())
            while not (await cluster.scheduler_figures())["queue_length"]:  # noqa: ASYNC110 - a process apart
                await asyncio.sleep(0.01)
            await update(cluster, 1)
            await waiting
            talk.check(1, [(1, 0)])

    asyncio.run(run())

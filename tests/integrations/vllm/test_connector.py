"""vLLM with the connector says what vLLM alone says, and computes less."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("vllm")

from tests.integrations.vllm.models import save_model
from tests.integrations.vllm.vllm_engine import (
    connector_of,
    generate,
    vllm_engine,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TURNS, APPEND, OUTPUT = 8, 37, 12
PROMPTS = [[(i * 7 + j) % 250 for i in range(300)] for j in range(3)]


def converse(llm):
    """Two agents at once, eight turns each: what was generated, and hit tokens beside context tokens."""
    contexts, outputs, hits = [[1, 2, 3], [9, 8, 7]], [], []
    for turn in range(TURNS):
        for agent, tokens in enumerate(contexts):
            tokens += [(turn * 31 + agent * 17 + i * 5) % 250 for i in range(APPEND)]
        generated = generate(llm, contexts, OUTPUT)
        hits.append(
            [(each.cached_tokens, len(tokens)) for each, tokens in zip(generated, contexts, strict=True)]
        )
        for tokens, each in zip(contexts, generated, strict=True):
            tokens += each.token_ids
            outputs.append((each.token_ids, each.logprobs))
    return outputs, hits


def says(generated):
    """Tokens exactly; logprobs to what another order of float32 sums may change."""
    tokens = [token for each in generated for token in each.token_ids]
    return tokens, pytest.approx([logprob for each in generated for logprob in each.logprobs], abs=1e-4)


@pytest.fixture(scope="module", params=["gqa", "mla"])
def model(request, tmp_path_factory):
    return save_model(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def alone(model):
    """What vLLM says by itself."""
    with vllm_engine(model) as llm:
        return generate(llm, PROMPTS), converse(llm)[0]


@pytest.fixture(scope="module")
def connected(model, alone, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    with vllm_engine(model, store, dram_bytes=32 << 20) as llm:
        yield llm, store


def test_what_is_loaded_leads_to_the_same_tokens_and_logprobs(connected, alone):
    llm, _ = connected
    expected = says(alone[0])
    computed = generate(llm, PROMPTS)
    loaded = generate(llm, PROMPTS)
    block_tokens = connector_of(llm)._service.layout.block_tokens
    assert [each.cached_tokens for each in computed] == [0, 0, 0]
    assert [each.cached_tokens for each in loaded] == [299 // block_tokens * block_tokens] * 3
    assert (says(computed)[0], says(loaded)[0]) == (expected[0], expected[0])
    for generated in (computed, loaded):
        assert [logprob for each in generated for logprob in each.logprobs] == expected[1]


def test_each_turn_of_a_conversation_hits_all_whole_blocks_before_it(connected, alone):
    llm, _ = connected
    outputs, hits = converse(llm)
    block_tokens = connector_of(llm)._service.layout.block_tokens
    for before, after in pairwise(hits):
        for (_, had), (hit, _) in zip(before, after, strict=True):
            # Of the last generated token there is no KV.
            assert hit == (had + OUTPUT - 1) // block_tokens * block_tokens
    assert [tokens for tokens, _ in outputs] == [tokens for tokens, _ in alone[1]]
    for (_, logprobs), (_, expected) in zip(outputs, alone[1], strict=True):
        assert logprobs == pytest.approx(expected, abs=1e-4)


def test_a_block_damaged_in_the_store_is_computed_again(connected, alone):
    llm, store = connected
    generate(llm, PROMPTS)
    service = connector_of(llm)._service
    service.flush()
    service.room.clear()  # or it would be found in memory
    for segment in store.glob("*.kv"):
        damaged = bytearray(segment.read_bytes())
        for place in range(4096 * 3, len(damaged), 4096 * 5):
            damaged[place] ^= 1
        segment.write_bytes(damaged)
    again = generate(llm, PROMPTS)
    assert service.figures()["reads_corrupt"] > 0
    assert says(again)[0] == says(alone[0])[0]
    assert says(again)[1].expected == says(alone[0])[1]


def test_a_block_damaged_in_memory_is_computed_again_by_vllm(connected, alone):
    llm, _ = connected
    generate(llm, PROMPTS)
    connector = connector_of(llm)
    connector._service.flush()
    used = {slot for slot in connector._service._sums if connector._service._staging.slot(slot).any()}
    for slot in used:
        connector._service._staging.slot(slot)[64] ^= 1
    again = generate(llm, PROMPTS)
    assert connector._scheduler.figures.damaged_blocks > 0
    assert says(again)[0] == says(alone[0])[0]
    assert says(again)[1].expected == says(alone[0])[1]


def test_new_weights_hit_nothing_old(connected):
    llm, _ = connected

    def halve(model):
        for parameter in model.parameters():
            parameter.data.mul_(0.5)

    def double(model):
        for parameter in model.parameters():
            parameter.data.mul_(2)

    before = generate(llm, PROMPTS)
    llm.apply_model(halve)
    assert llm.reset_prefix_cache(reset_connector=True)
    other = generate(llm, PROMPTS)
    assert [each.cached_tokens for each in other] == [0, 0, 0]
    assert says(other)[0] != says(before)[0]
    llm.apply_model(double)
    assert llm.reset_prefix_cache(reset_connector=True)
    assert says(generate(llm, PROMPTS))[0] == says(before)[0]

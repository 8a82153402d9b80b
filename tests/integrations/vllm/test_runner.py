"""vLLM's worker under our engines says what vLLM says by itself, wherever a prompt's KV came from."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engines.errors import ModelUnsupported
from engines.model.runner import BatchShape, DecodeRow, PrefillRow
from engines.vllm.runner import BatchLimits, VllmRunner
from tests.integrations.vllm.models import save_model
from tests.integrations.vllm.vllm_engine import generate, shut_down

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FILE = "model.safetensors"
BLOCK_TOKENS = {"gqa": 32, "tied": 32, "mla": 16}
PROMPTS = [[(i * 7 + j) % 250 for i in range(length)] for j, length in enumerate((150, 97, 64))]

DENSE, MLA = (
    pytest.mark.parametrize("runner", names, indirect=True, scope="module")
    for names in (["gqa", "tied"], ["mla"])
)


@pytest.fixture(scope="module", params=["gqa", "mla"])
def runner(request, tmp_path_factory):
    model = save_model(request.param, tmp_path_factory.mktemp("models") / request.param)
    opened = open_runner(model, BLOCK_TOKENS[request.param])
    yield opened
    shut_down(opened._llm)


def open_runner(model, block_tokens):
    limits = BatchLimits(rows=16, tokens=1024)
    return VllmRunner(str(model), block_tokens, dtype="float32", device="cpu", kv_bytes=16 << 20, most=limits)


def test_a_model_that_vllms_kernels_cannot_run_is_refused(tiny_model_dir):
    try:
        with pytest.raises(ModelUnsupported, match=r"cannot run this model on cpu: .*head_dim=16"):
            open_runner(tiny_model_dir, 32)
    finally:
        shut_down()


class KeepingFeed:
    """A LayerFeed whose hits are what an earlier batch made; it keeps what a batch makes."""

    def __init__(self, runner, rows, kept=None):
        tokens = runner.layout.block_tokens
        new = tuple(runner.layout.num_blocks(len(row.token_ids)) * tokens for row in rows)
        self.shape = BatchShape(tuple(row.hit_tokens for row in rows), new)
        self.made = []
        self._kept = kept
        self._buffer = runner.new_buffer(self.shape)

    def load(self, layer):
        self._buffer.zero_()
        for row, hit in enumerate(self.shape.hit_tokens):
            if hit:
                self._buffer[row, :hit] = self._kept[layer][row][:hit]
        return self._buffer

    def store(self, layer):
        first = self.shape.hit_columns
        hits = [
            self._kept[layer][row][:hit] if hit else self._buffer[row, :0]
            for row, hit in enumerate(self.shape.hit_tokens)
        ]
        self.made.append(
            [
                torch.cat([hit, self._buffer[row, first : first + new]])
                for row, (hit, new) in enumerate(zip(hits, self.shape.new_tokens, strict=True))
            ]
        )


def prefill(runner, prompts, hits=None, kept=None):
    hits = hits or [0] * len(prompts)
    rows = [PrefillRow(hit, array("i", prompt[hit:])) for prompt, hit in zip(prompts, hits, strict=True)]
    feed = KeepingFeed(runner, rows, kept)
    return runner.prefill(rows, feed), feed.made


def logprobs(logits):
    best = logits.log_softmax(-1).max(-1)
    return best.indices.tolist(), best.values.tolist()


def decode_all(runner, prompts, made, first_tokens, steps):
    """Greedy, over blocks of the pool taken from its end, so that nothing lies there by luck."""
    pool = runner.make_pool(1)
    pool.zero_()
    tokens, free = runner.layout.block_tokens, list(range(pool.shape[1]))[::-1]
    tables = [[free.pop(0) for _ in range(runner.layout.num_blocks(len(p) + steps))] for p in prompts]
    for layer, of_layer in enumerate(made):
        for table, kv in zip(tables, of_layer, strict=True):
            blocks = kv.view(-1, tokens, kv.shape[-1])
            pool[layer, torch.tensor(table[: len(blocks)])] = blocks
    said = [[token] for token in first_tokens]
    for step in range(steps - 1):
        rows = [
            DecodeRow(own[-1], len(prompt) + step, table)
            for own, prompt, table in zip(said, prompts, tables, strict=True)
        ]
        chosen, _ = logprobs(runner.decode(rows))
        for own, token in zip(said, chosen, strict=True):
            own.append(token)
    return said


def test_prefill_and_decode_say_what_vllm_says(runner):
    expected = generate(runner._llm, PROMPTS, 40)
    logits, made = prefill(runner, PROMPTS)
    first, values = logprobs(logits)
    assert first == [each.token_ids[0] for each in expected]
    assert values == pytest.approx([each.logprobs[0] for each in expected], abs=1e-4)
    assert decode_all(runner, PROMPTS, made, first, 40) == [each.token_ids for each in expected]


def test_hits_of_an_earlier_prefill_change_nothing(runner):
    tokens = runner.layout.block_tokens
    logits, made = prefill(runner, PROMPTS)
    hits = [(len(prompt) - 1) // tokens * tokens for prompt in PROMPTS]
    hits[1] = 0
    again, made_again = prefill(runner, PROMPTS, hits, made)
    assert logprobs(again)[0] == logprobs(logits)[0]
    assert logprobs(again)[1] == pytest.approx(logprobs(logits)[1], abs=1e-4)
    first = logprobs(again)[0]
    assert decode_all(runner, PROMPTS, made_again, first, 20) == decode_all(runner, PROMPTS, made, first, 20)


def folder_weights(runner):
    """As they would be pushed."""
    return [(name, weight.numpy()) for name, weight in load_file(runner._folder / FILE).items()]


def push(runner, *buckets):
    for bucket in buckets:
        runner.load_weights(bucket)
    runner.weights_loaded()


def logits_by_transformers(runner, weights):
    model = AutoModelForCausalLM.from_pretrained(runner._folder, dtype=torch.float32)
    model.load_state_dict({name: torch.tensor(array) for name, array in weights}, strict=False)
    with torch.no_grad():
        return torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])


@DENSE
def test_new_weights_are_used_once_all_are_there(runner):
    before, _ = prefill(runner, PROMPTS)
    other = [(name, np.roll(array, 1)) for name, array in folder_weights(runner)]
    expected = logits_by_transformers(runner, other)
    assert not torch.allclose(expected, before, atol=0.1)
    runner.load_weights(other[:5])
    runner.load_weights(other[5:])
    assert torch.equal(prefill(runner, PROMPTS)[0], before)
    runner.weights_loaded()
    assert torch.allclose(prefill(runner, PROMPTS)[0], expected, atol=1e-4)
    push(runner, folder_weights(runner))
    assert torch.allclose(prefill(runner, PROMPTS)[0], before, atol=1e-4)


@DENSE
def test_new_weights_can_be_read_for_an_engine_that_has_just_started(runner):
    pushed = {name: array * 0.75 for name, array in folder_weights(runner)}
    push(runner, pushed.items())
    expected, _ = prefill(runner, PROMPTS)
    assert runner.weight_sizes() == {name: array.nbytes for name, array in pushed.items()}
    names = list(pushed)
    buckets = [runner.read_weights(names[:7]), runner.read_weights(names[7:])]
    push(runner, folder_weights(runner))
    assert not torch.allclose(prefill(runner, PROMPTS)[0], expected, atol=1e-3)
    push(runner, *buckets)
    assert torch.equal(prefill(runner, PROMPTS)[0], expected)


@DENSE
def test_weights_that_were_not_pushed_stay(runner):
    """Where vLLM has fused them with what was, too."""
    weights = folder_weights(runner)
    queries = [(name, array * 2) for name, array in weights if "q_proj" in name]
    push(runner, weights, queries)
    expected, _ = prefill(runner, PROMPTS)
    push(runner, weights)
    runner._held.clear()  # as if nothing had ever been pushed
    push(runner, queries)
    assert torch.equal(prefill(runner, PROMPTS)[0], expected)
    push(runner, weights)


@MLA
def test_new_weights_of_experts_are_refused(runner):
    with pytest.raises(ModelUnsupported, match="experts"):
        runner.load_weights([])

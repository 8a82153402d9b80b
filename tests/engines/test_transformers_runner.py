"""The runner against transformers' own forward with its DynamicCache fed the same chunks."""

from __future__ import annotations

from array import array

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from engines.errors import ModelUnsupported
from engines.model.cache_format import cache_format
from engines.model.runner import BatchShape, DecodeRow, PrefillRow
from engines.model.transformers_runner import TransformersRunner, batch_shape
from tests.engines.tiny_models import NAMES, VOCABULARY, tiny_config, tiny_model

BLOCK_TOKENS = 8


class MemoryFeed:
    """Keeps every layer's KV of every context in memory: [tokens, token_elements] per layer."""

    def __init__(self, runner: TransformersRunner, shape: BatchShape, stored: list[list[Tensor]]):
        self.shape = shape
        self.stored = stored
        self.buffers = [runner.new_buffer(shape) for _ in range(2)]

    def load(self, layer: int) -> Tensor:
        buffer = self.buffers[layer % 2]
        for row, hit in enumerate(self.shape.hit_tokens):
            buffer[row, :hit] = self.stored[row][layer][:hit]
        return buffer

    def store(self, layer: int) -> None:
        buffer = self.buffers[layer % 2]
        for row, (hit, new) in enumerate(zip(self.shape.hit_tokens, self.shape.new_tokens, strict=True)):
            first = self.shape.hit_columns
            kept = self.stored[row][layer][:hit]
            self.stored[row][layer] = torch.cat([kept, buffer[row, first : first + new]])


def new_context(runner: TransformersRunner) -> list[Tensor]:
    elements = runner.layout.token_bytes // 4
    return [torch.zeros(0, elements) for _ in range(runner.layout.num_layers)]


def random_ids(num_tokens: int, seed: int) -> array[int]:
    generator = torch.Generator().manual_seed(seed)
    return array("i", torch.randint(0, VOCABULARY, (num_tokens,), generator=generator).tolist())


def as_batch(token_ids: array[int]) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.long)[None]


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_decode_steps_equal_transformers_fed_the_same(name: str) -> None:
    model = tiny_model(name)
    runner, oracle = TransformersRunner(model, BLOCK_TOKENS), DynamicCache(config=model.config)
    context, position = new_context(runner), 0
    for seed, num_tokens in enumerate((37, 5, 24)):
        ids = random_ids(num_tokens, seed)
        row = PrefillRow(position, ids)
        ours = runner.prefill([row], MemoryFeed(runner, batch_shape([row]), [context]))
        theirs = model(as_batch(ids), past_key_values=oracle, use_cache=True).logits[:, -1]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        position += num_tokens
    pool = runner.make_pool(32)
    table = [17, 3, 30, 9, 0, 25, 8, 14, 11, 2]
    for layer, kv in enumerate(context):
        for token in range(position):
            pool[layer, table[token // BLOCK_TOKENS], token % BLOCK_TOKENS] = kv[token]
    for step, token in enumerate(random_ids(6, 9)):
        ours = runner.decode([DecodeRow(token, position + step, table)])
        theirs = model(torch.tensor([[token]]), past_key_values=oracle, use_cache=True).logits[:, -1]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (runner.counts.prompt, runner.counts.decode) == (66, 6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "deepseek_v32"])
def test_rows_of_a_mixed_batch_equal_the_rows_alone(name: str) -> None:
    runner = TransformersRunner(tiny_model(name), BLOCK_TOKENS)
    lengths = ((0, 30), (16, 3), (48, 17), (8, 1))
    contexts = []
    for seed, (hit, _) in enumerate(lengths):
        context = new_context(runner)
        if hit:
            row = PrefillRow(0, random_ids(hit, seed))
            runner.prefill([row], MemoryFeed(runner, batch_shape([row]), [context]))
        contexts.append(context)
    rows = [PrefillRow(hit, random_ids(new, 100 + new)) for hit, new in lengths]
    copies = [[kv.clone() for kv in context] for context in contexts]
    together = runner.prefill(rows, MemoryFeed(runner, batch_shape(rows), contexts))
    for index, row in enumerate(rows):
        alone = runner.prefill([row], MemoryFeed(runner, batch_shape([row]), [copies[index]]))
        torch.testing.assert_close(together[index], alone[0], atol=1e-5, rtol=0)
        for layer in range(runner.layout.num_layers):
            torch.testing.assert_close(contexts[index][layer], copies[index][layer], atol=1e-5, rtol=0)


def test_sparse_attention_refuses_to_pad() -> None:
    runner = TransformersRunner(tiny_model("deepseek_v32"), BLOCK_TOKENS)
    rows = [PrefillRow(0, random_ids(5, 0)), PrefillRow(0, random_ids(6, 0))]
    assert not runner.padding_exact
    with pytest.raises(ValueError, match="equal lengths"):
        runner.prefill(rows, MemoryFeed(runner, batch_shape(rows), [new_context(runner)] * 2))


def test_mla_stores_the_latent_and_not_the_expanded_keys() -> None:
    model = tiny_model("deepseek_v3")
    groups = cache_format(model, model.config).kv_format.groups
    assert [(group.name, group.bytes_per_token) for group in groups] == [("latent", 128), ("rope", 64)]


def test_a_sliding_window_layer_is_refused_by_its_number() -> None:
    config = tiny_config("qwen2")
    config.use_sliding_window, config.sliding_window = True, 16
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    model = tiny_model("qwen2")
    with pytest.raises(ModelUnsupported, match="layer 1"):
        cache_format(model, config)

"""The reference runner: any transformers causal language model whose cache is per-token, on CPU or GPU.

It is the oracle the other runners are compared with. Rows of unequal length are padded and masked, which
is exact for dense attention; for sparse attention it is not, and the engines then batch equal lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engines.measured import Forward, TokenCounts
from engines.model.cache_format import cache_format
from engines.model.paged_cache import PagedBatch, paged_cache
from engines.model.runner import BatchShape, DecodeRow, GroupLinks, LayerFeed, NamedArray, PrefillRow
from engines.model.stream_cache import stream_cache
from engines.scheduling.prefill_estimates import PrefillProfile
from kvstore.layout import BlockLayout


class TransformersRunner:
    """A ModelRunner over one transformers model."""

    pads = True
    paged = False
    prefill_profile: PrefillProfile | None = None
    attention_s: float | None = None

    def __init__(self, model: PreTrainedModel, block_tokens: int) -> None:
        self._model = model
        self._format = cache_format(model, model.config.get_text_config(decoder=True))
        self.device = model.device
        self.layout = BlockLayout(self._format.kv_format, block_tokens)
        self.padding_exact = not self._format.sparse
        self.counts = TokenCounts()
        self._pool = self._scratch = torch.empty(0)
        self._parameters = dict(model.named_parameters(remove_duplicate=False))

    @property
    def dtype(self) -> torch.dtype:
        return self._format.dtype

    @property
    def forwards(self) -> tuple[Forward, ...]:
        return ()

    def link(self, links: GroupLinks) -> None:
        pass

    @torch.no_grad()
    def prefill(self, rows: Sequence[PrefillRow], feed: LayerFeed) -> Tensor:
        shape = batch_shape(rows)
        self._require_equal_lengths(shape)
        token_ids = torch.zeros(len(rows), shape.new_columns, dtype=torch.long)
        for index, row in enumerate(rows):
            token_ids[index, : len(row.token_ids)] = torch.frombuffer(row.token_ids, dtype=torch.int32)
        hit_B1 = torch.tensor(shape.hit_tokens)[:, None]
        position_ids = hit_B1 + torch.arange(shape.new_columns)
        last = torch.tensor(shape.new_tokens) - 1
        kept, row_of = torch.unique(last, return_inverse=True)
        logits = self._model(
            token_ids.to(self.device),
            position_ids=position_ids.to(self.device),
            attention_mask=prefill_mask(shape, self.device),
            past_key_values=stream_cache(self._format, shape, feed),
            use_cache=True,
            logits_to_keep=kept.to(self.device),
        ).logits
        self.counts.prompt += sum(shape.new_tokens)
        return logits[torch.arange(len(rows)), row_of]

    def new_buffer(self, shape: BatchShape) -> Tensor:
        size = (len(shape.hit_tokens), shape.columns, self._format.token_elements)
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    def make_pool(self, num_blocks: int) -> Tensor:
        size = (self.layout.num_layers, num_blocks, self.layout.block_tokens)
        self._pool = torch.zeros(*size, self._format.token_elements, dtype=self.dtype, device=self.device)
        return self._pool

    def begin_decode(self, row: DecodeRow) -> None:
        """Nothing is checked here: a prompt's bytes are, before they are copied."""

    @torch.no_grad()
    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        if not self.padding_exact and len({row.position for row in rows}) > 1:
            raise ValueError("sparse attention: rows of a decode batch must stand at one position")
        batch = PagedBatch(rows, self.layout.block_tokens, self.device)
        logits = self._model(
            torch.tensor([[row.token_id] for row in rows], device=self.device),
            position_ids=batch.position_B[:, None],
            attention_mask=batch.mask(),
            past_key_values=paged_cache(self._pool, self._scratch_for(batch), self._format, batch),
            use_cache=True,
        ).logits[:, -1]
        self.counts.decode += len(rows)
        return logits

    def weight_sizes(self) -> dict[str, int]:
        return {name: 4 * parameter.numel() for name, parameter in self._model.named_parameters()}

    @torch.no_grad()
    def read_weights(self, names: Sequence[str]) -> list[NamedArray]:
        """As float32: numpy has no bfloat16, and the widening is exact."""
        return [(name, self._parameters[name].float().cpu().numpy().copy()) for name in names]

    @torch.no_grad()
    def load_weights(self, bucket: Iterable[NamedArray]) -> None:
        for name, array in bucket:
            if name not in self._parameters:
                raise KeyError(f"the model has no weight named {name}")
            parameter = self._parameters[name]
            tensor = torch.as_tensor(array)
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"weight {name} is {tuple(tensor.shape)}, the model's is {tuple(parameter.shape)}"
                )
            parameter.copy_(tensor)

    def weights_loaded(self) -> None:
        pass

    def _scratch_for(self, batch: PagedBatch) -> Tensor:
        needed = len(batch.block_table) * self._pool[0, 0].numel()
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed * 5 // 4, dtype=self.dtype, device=self.device)
        return self._scratch

    def _require_equal_lengths(self, shape: BatchShape) -> None:
        if self.padding_exact:
            return
        if len(set(shape.hit_tokens)) > 1 or len(set(shape.new_tokens)) > 1:
            raise ValueError("sparse attention: rows of a prefill batch must have equal lengths")


def batch_shape(rows: Sequence[PrefillRow]) -> BatchShape:
    return BatchShape(tuple(row.hit_tokens for row in rows), tuple(len(row.token_ids) for row in rows))


def prefill_mask(shape: BatchShape, device: torch.device) -> Tensor:
    """True where a query may look: [rows, 1, new_columns, columns].

    A padded query sees what the columns before it hold, so that no softmax is empty.
    """
    hit = torch.tensor(shape.hit_tokens, device=device)[:, None, None]
    query = torch.arange(shape.new_columns, device=device)[None, :, None]
    column = torch.arange(shape.columns, device=device)[None, None, :]
    in_hit = column < hit
    in_new = (column >= shape.hit_columns) & (column - shape.hit_columns <= query)
    return (in_hit | in_new)[:, None]

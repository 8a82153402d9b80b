"""The cache a decode step runs on: one preallocated pool per layer, and block tables.

    pool    [layers, num_blocks, block_tokens, token_elements]   a pool block's layer is a Layer Block
    gather  [rows, columns, token_elements]                      columns = tokens of the longest row

The gathered copy is scratch that lives for one layer; what attention sees beyond a row's length is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from engines.model.cache_format import CacheFormat
from engines.model.runner import DecodeRow


class PagedBatch:
    """Where the rows of one decode step read and write in every layer's pool."""

    def __init__(self, rows: Sequence[DecodeRow], block_tokens: int, device: torch.device) -> None:
        most_blocks = max(row.position // block_tokens + 1 for row in rows)
        tables = [list(row.block_table[:most_blocks]) for row in rows]
        padded = [table + [0] * (most_blocks - len(table)) for table in tables]
        self.num_rows = len(rows)
        # Exactly as many columns as the longest row has tokens: a sparse indexer breaks ties by shape.
        self.columns = max(row.position for row in rows) + 1
        self.position_B = torch.tensor([row.position for row in rows], device=device)
        self.block_table = torch.tensor(padded, device=device).flatten()
        self.write_block = torch.tensor(
            [row.block_table[row.position // block_tokens] for row in rows], device=device
        )
        self.write_offset = self.position_B % block_tokens

    def mask(self) -> Tensor:
        """True where a row may look: [rows, 1, 1, columns]."""
        columns = torch.arange(self.columns, device=self.position_B.device)
        return (columns[None, :] <= self.position_B[:, None])[:, None, None, :]


class PagedLayer(CacheLayerMixin):
    """One layer of the paged cache, for one decode step."""

    is_compileable = False
    is_sliding = False

    def __init__(self, pool: Tensor, scratch: Tensor, cache_format: CacheFormat, batch: PagedBatch) -> None:
        super().__init__()
        self._pool = pool
        self._scratch = scratch
        self._groups = {group.attribute: group for group in cache_format.groups}
        self._batch = batch
        self._pending = set(self._groups)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self._write("keys", key_states)
        self._write("values", value_states)
        gathered = self._gather()
        return self._groups["keys"].unpack(gathered), self._groups["values"].unpack(gathered)

    def update_indexer(self, indexer_key_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._write("indexer_keys", indexer_key_states)
        return self._groups["indexer_keys"].unpack(self._gather())

    def get_seq_length(self) -> int:
        return self._batch.columns - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._batch.columns, 0

    def get_max_length(self) -> int:
        return -1

    def _write(self, attribute: str, states: Tensor) -> None:
        group = self._groups[attribute]
        part = slice(group.start, group.start + group.num_elements)
        packed = group.pack(states)[:, 0]
        self._pool[self._batch.write_block, self._batch.write_offset, part] = packed

    def _gather(self) -> Tensor:
        blocks, block_elements = len(self._batch.block_table), self._pool[0].numel()
        flat = self._scratch[: blocks * block_elements].view(blocks, block_elements)
        torch.index_select(self._pool.flatten(1), 0, self._batch.block_table, out=flat)
        return flat.view(self._batch.num_rows, -1, self._pool.shape[-1])[:, : self._batch.columns]


def paged_cache(pool: Tensor, scratch: Tensor, cache_format: CacheFormat, batch: PagedBatch) -> Cache:
    """A cache for one decode step over `pool` [layers, num_blocks, block_tokens, token_elements]."""
    return Cache(layers=[PagedLayer(layer, scratch, cache_format, batch) for layer in pool])

"""The cache a prefill runs on: each layer's KV passes through, none stays.

A layer's first touch waits for its hit KV; its last touch hands the new KV out. The hook is the cache
layer's `update` (and `update_indexer` for sparse attention), so any transformers model whose cache is
per-token streams without being named.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from engines.model.cache_format import CacheFormat
from engines.model.runner import BatchShape, LayerFeed


class StreamLayer(CacheLayerMixin):
    """One layer of a StreamCache."""

    is_compileable = False
    is_sliding = False

    def __init__(self, layer: int, cache_format: CacheFormat, shape: BatchShape, feed: LayerFeed) -> None:
        super().__init__()
        self._layer = layer
        self._groups = {group.attribute: group for group in cache_format.groups}
        self._shape = shape
        self._feed = feed
        self._buffer: Tensor | None = None
        self._pending = set(self._groups)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys = self._put("keys", key_states)
        values = self._put("values", value_states)
        return keys, values

    def update_indexer(self, indexer_key_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._put("indexer_keys", indexer_key_states)

    def get_seq_length(self) -> int:
        return self._shape.hit_columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._shape.columns, 0

    def get_max_length(self) -> int:
        return -1

    def _put(self, attribute: str, states: Tensor) -> Tensor:
        group = self._groups[attribute]
        if self._buffer is None:
            self._buffer = self._feed.load(self._layer)
        buffer = self._buffer
        part = slice(group.start, group.start + group.num_elements)
        buffer[:, self._shape.hit_columns :, part] = group.pack(states)
        self._pending.discard(attribute)
        if not self._pending:
            self._buffer = None
            self._feed.store(self._layer)
        return group.unpack(buffer)


def stream_cache(cache_format: CacheFormat, shape: BatchShape, feed: LayerFeed) -> Cache:
    """A cache for one forward over a batch of `shape`."""
    num_layers = cache_format.kv_format.num_layers
    return Cache(layers=[StreamLayer(i, cache_format, shape, feed) for i in range(num_layers)])

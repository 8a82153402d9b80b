"""What joins vLLM's layers to a LayerFeed: how a prefill engine's hits come into vLLM's cache, and leave it.

A LayerFeed knows staging slots and nodes, vLLM's worker knows pages; between the two lies one layer's HBM
buffer. vLLM asks for its connector before and after each layer, and that is when this copies. Nothing
here decides what a hit is: the scheduler of this project has, and vLLM's own is not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)

from engines.model.runner import BatchShape, LayerFeed
from engines.vllm.page_format import layers_in_order


@dataclass
class NoPlan(KVConnectorMetadata):
    """vLLM wants metadata with each step; a sweep is set beside it."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One prefill batch on its way through the layers. A page is a block here."""

    feed: LayerFeed
    shape: BatchShape
    block_tokens: int
    pages: tuple[tuple[int, ...], ...]
    """By row, of its whole context."""

    def before(self, layer: int, cache: Tensor) -> Tensor:
        """Bring the layer's hits into vLLM's cache; the layer's buffer."""
        buffer = self.feed.load(layer)
        for row, hit in enumerate(self.shape.hit_tokens):
            if hit:
                hit_pages = torch.tensor(self.pages[row][: hit // self.block_tokens], device=cache.device)
                cache[hit_pages] = self._as_pages(buffer[row, :hit], cache)
        return buffer

    def after(self, layer: int, cache: Tensor, buffer: Tensor) -> None:
        """The layer has computed: hand its new blocks out."""
        first = self.shape.hit_columns
        for row, (hit, new) in enumerate(zip(self.shape.hit_tokens, self.shape.new_tokens, strict=True)):
            new_pages = torch.tensor(self.pages[row][hit // self.block_tokens :], device=cache.device)
            self._as_pages(buffer[row, first : first + new], cache).copy_(cache[new_pages])
        self.feed.store(layer)

    def _as_pages(self, tokens: Tensor, cache: Tensor) -> Tensor:
        return tokens.reshape(-1).view(-1, *cache.shape[1:])


class FeedConnector(KVConnectorBase_V1):
    """The worker's half holds vLLM's caches; the scheduler's half is there because vLLM makes one."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.caches: dict[str, Tensor] = {}
        self.kv_cache_config = kv_cache_config
        self._layers: dict[str, int] = {}
        self._sweep: Sweep | None = None
        self._buffer: Tensor | None = None

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        self.caches = kv_caches
        self._layers = {name: number for number, name in enumerate(layers_in_order(kv_caches))}

    def sweep(self, sweep: Sweep | None) -> None:
        """What the next forward feeds; None: nothing."""
        self._sweep = sweep

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._sweep is not None:
            self._buffer = self._sweep.before(self._layers[layer_name], self.caches[layer_name])

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        if self._sweep is not None:
            assert self._buffer is not None
            self._sweep.after(self._layers[layer_name], self.caches[layer_name], self._buffer)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return NoPlan()


def pages_in_turn(num_pages: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """So many pages for each row, one row after the other."""
    ends = list(accumulate(num_pages))
    for count, end in zip(num_pages, ends, strict=True):
        yield tuple(range(end - count, end))

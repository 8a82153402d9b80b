"""What a transformers model keeps per token and layer, and whether these engines can stream it.

Decides the KV format from the cache the model itself builds: the groups, their order in a Layer Block and
their sizes. A layer whose cache is not a plain per-token one (linear attention, a sliding window) is
refused by its number. The sizes come from a one-token run, so no architecture is named here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

from engines.errors import ModelUnsupported
from kvstore.layout import KVFormat, KVGroup

# cache attribute -> group name, for plain attention and for MLA
_PLAIN_NAMES = {"keys": "k", "values": "v", "indexer_keys": "indexer"}
_LATENT_NAMES = {"keys": "latent", "values": "rope", "indexer_keys": "indexer"}


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """One tensor of a cache layer: `heads` x `dim` elements per token, from `start` in a token."""

    attribute: str
    heads: int
    dim: int
    start: int
    has_head_axis: bool

    @property
    def num_elements(self) -> int:
        return self.heads * self.dim

    def pack(self, states: Tensor) -> Tensor:
        """[rows, heads, tokens, dim] (or [rows, tokens, dim]) -> [rows, tokens, heads * dim]."""
        return states.transpose(1, 2).flatten(2) if self.has_head_axis else states

    def unpack(self, buffer: Tensor) -> Tensor:
        """A view of this group in a [rows, tokens, token_elements] buffer, in the model's shape."""
        rows, tokens, _ = buffer.shape
        part = buffer[..., self.start : self.start + self.num_elements]
        if not self.has_head_axis:
            return part
        return part.view(rows, tokens, self.heads, self.dim).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """The groups of every layer of one model, and its KV format."""

    groups: tuple[CacheGroup, ...]
    dtype: torch.dtype
    kv_format: KVFormat

    @property
    def token_elements(self) -> int:
        return sum(group.num_elements for group in self.groups)

    @property
    def sparse(self) -> bool:
        """Whether an indexer picks keys, so that padding may change what it picks."""
        return any(group.attribute == "indexer_keys" for group in self.groups)


def refuse_unsupported_layers(config: PretrainedConfig) -> None:
    """Raise ModelUnsupported naming the first cache layer that is not a plain per-token one."""
    for number, layer in enumerate(DynamicCache(config=config).layers):
        if type(layer) not in (DynamicLayer, DynamicIndexedLayer):
            raise ModelUnsupported(
                f"layer {number} of this {config.model_type} model keeps its KV in a "
                f"{type(layer).__name__}; only layers that keep every token's KV are supported"
            )


@torch.no_grad()
def cache_format(model: nn.Module, config: PretrainedConfig) -> CacheFormat:
    """Read the format off a one-token run of `model`."""
    refuse_unsupported_layers(config)
    cache = DynamicCache(config=config)
    device = next(model.parameters()).device
    model(torch.zeros(1, 1, dtype=torch.long, device=device), past_key_values=cache, use_cache=True)
    shapes = [_layer_tensors(layer) for layer in cache.layers]
    for number, tensors in enumerate(shapes):
        described = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        first = {name: (tuple(t.shape), t.dtype) for name, t in shapes[0].items()}
        if described != first or len({t.dtype for t in tensors.values()}) != 1:
            raise ModelUnsupported(
                f"layer {number} of this {config.model_type} model keeps {described}, layer 0 keeps "
                f"{first}; all layers must keep the same"
            )
    return _format_of(shapes[0], num_layers=len(shapes), config=config)


def _layer_tensors(layer: object) -> dict[str, Tensor]:
    names = ("keys", "values", "indexer_keys")
    found = {name: getattr(layer, name, None) for name in names}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _format_of(tensors: dict[str, Tensor], *, num_layers: int, config: PretrainedConfig) -> CacheFormat:
    groups: list[CacheGroup] = []
    start = 0
    for attribute, tensor in tensors.items():
        has_head_axis = tensor.ndim == 4
        heads = tensor.shape[1] if has_head_axis else 1
        groups.append(CacheGroup(attribute, heads, tensor.shape[-1], start, has_head_axis))
        start += groups[-1].num_elements
    dtype = tensors["keys"].dtype
    latent = getattr(config, "kv_lora_rank", None) == tensors["keys"].shape[-1]
    names = _LATENT_NAMES if latent else _PLAIN_NAMES
    kv_format = KVFormat(
        dtype=str(dtype).removeprefix("torch."),
        num_layers=num_layers,
        groups=tuple(
            KVGroup(names[group.attribute], group.num_elements * dtype.itemsize) for group in groups
        ),
    )
    return CacheFormat(tuple(groups), dtype, kv_format)

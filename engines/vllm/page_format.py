"""vLLM's KV cache seen as Layer Blocks, and whether it is one that the connector knows.

vLLM keeps, for each layer, a tensor of *pages* (its own word is block; a block here is the store's). Whatever
a page looks like inside (heads before tokens, K tiled for a CPU's registers), it is moved whole and by its
logical index. So nothing has to be known of the inside but that two caches look alike there: what decides it,
kind, shape and dtype, is in the KV format, and who has another finds nothing.

    page          [...]                       one layer, `page_tokens` tokens
    Layer Block   [pages_per_block, ...]      one layer, `block_tokens` tokens: its pages back to back
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from engines.errors import ModelUnsupported
from kvstore.layout import BlockLayout, KVFormat, KVGroup

KNOWN_SPECS = ("FullAttentionSpec", "MLAAttentionSpec")
"""vLLM's names of caches that keep every token of a context; by name, as they are the worker's classes."""
_PAGE_DIMENSIONS = 3


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """What vLLM says of one group of layers that share a block table."""

    spec: str
    """The class of its KV cache spec."""
    num_pages: int
    page_tokens: int


@dataclass(frozen=True, slots=True)
class PageFormat:
    """A page of one layer; the same for all layers. Picklable."""

    kind: str
    """What decides how a page looks inside: attention backend and processor."""
    dtype: str
    shape: tuple[int, ...]
    itemsize: int
    page_tokens: int
    num_layers: int

    @property
    def page_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    def block_layout(self, block_tokens: int) -> BlockLayout:
        """Of blocks of so many tokens, a multiple of `page_tokens`."""
        shape = "x".join(str(size) for size in self.shape)
        group = KVGroup(f"vllm {self.kind} {shape}/{self.page_tokens}", self.page_bytes // self.page_tokens)
        return BlockLayout(KVFormat(self.dtype, self.num_layers, (group,)), block_tokens)


def layers_in_order(caches: Mapping[str, Tensor]) -> list[str]:
    """Names of layers by the numbers in them: model.layers.2 comes before model.layers.10."""
    return sorted(caches, key=lambda name: [int(number) for number in re.findall(r"\d+", name)] or [-1])


def pages_of(cache: Tensor, num_pages: int) -> Tensor:
    """`cache` with one row for each of vLLM's blocks, where a backend's kernels split them further."""
    return cache if cache.shape[0] == num_pages else cache.unflatten(0, (num_pages, -1))


def page_format(caches: Mapping[str, Tensor], groups: list[CacheGroup], kind: str) -> PageFormat:
    """The format of the caches that vLLM made; ModelUnsupported, in one line, where it is not known."""
    if len(groups) != 1:
        raise ModelUnsupported(
            f"this model keeps its KV in {len(groups)} groups of layers "
            f"({', '.join(group.spec for group in groups)}); the connector knows models with one"
        )
    group = groups[0]
    if group.spec not in KNOWN_SPECS:
        raise ModelUnsupported(
            f"this model keeps its KV as {group.spec}; the connector knows {', '.join(KNOWN_SPECS)}"
        )
    _refuse_shared(caches)
    names = layers_in_order(caches)
    pages = {name: _page(name, caches[name], group.num_pages) for name in names}
    first = pages[names[0]]
    for name, page in pages.items():
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise ModelUnsupported(
                f"layer {name} keeps pages of {tuple(page.shape)} {page.dtype}, layer {names[0]} of "
                f"{tuple(first.shape)} {first.dtype}; all layers must keep the same"
            )
    if first.numel() * first.itemsize % group.page_tokens:
        raise ModelUnsupported(
            f"a page of {group.page_tokens} tokens is {first.numel() * first.itemsize} bytes, no whole "
            "number for each token"
        )
    return PageFormat(
        kind=kind,
        dtype=str(first.dtype).removeprefix("torch."),
        shape=tuple(first.shape),
        itemsize=first.itemsize,
        page_tokens=group.page_tokens,
        num_layers=len(names),
    )


def _page(name: str, cache: Tensor, num_pages: int) -> Tensor:
    rows = cache.shape[0] if cache.ndim else 0
    if cache.ndim < _PAGE_DIMENSIONS or not rows or rows % num_pages:
        raise ModelUnsupported(
            f"layer {name} keeps its KV in a tensor of {tuple(cache.shape)}; the connector knows tensors "
            f"whose first axis is vLLM's {num_pages} blocks"
        )
    return pages_of(cache, num_pages)[0]


def _refuse_shared(caches: Mapping[str, Tensor]) -> None:
    places: dict[int, str] = {}
    for name, cache in caches.items():
        other = places.setdefault(cache.data_ptr(), name)
        if other != name:
            raise ModelUnsupported(
                f"layers {other} and {name} share their KV; the connector knows none that do"
            )

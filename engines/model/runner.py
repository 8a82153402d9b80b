"""The ModelRunner seam: layerwise prefill, batched decode over paged KV, new weights.

A runner computes. It does not know where KV comes from or goes to: a `LayerFeed` brings the hit KV of a
layer into the HBM buffer just before that layer runs and takes the new KV out just after, and a
decode batch names blocks of the runner's own paged pool.

    HBM buffer of one layer   [rows, hit_columns + new_columns, token_elements]
    row r, column c           c < hit_tokens[r]: hit token c
                              hit_columns <= c < hit_columns + new_tokens[r]: new token c - hit_columns
    token_elements            the layer's groups side by side, as in a Layer Block
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engines.measured import Forward, TokenCounts
from engines.model.forward_rounds import ForwardRounds
from engines.scheduling.prefill_estimates import PrefillProfile
from engines.types import NO_KEYS, BlockId, PromptKeys
from kvstore.layout import BlockLayout

NamedArray = tuple[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """One request of a prefill batch: `token_ids` follow `hit_tokens` tokens whose KV is stored."""

    hit_tokens: int
    token_ids: array[int]
    prompt: PromptKeys = NO_KEYS
    """Which context it is, for a runner that checks the KV it is given."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Shape of a prefill batch's HBM buffer."""

    hit_tokens: tuple[int, ...]
    new_tokens: tuple[int, ...]

    @property
    def hit_columns(self) -> int:
        return max(self.hit_tokens)

    @property
    def new_columns(self) -> int:
        return max(self.new_tokens)

    @property
    def columns(self) -> int:
        return self.hit_columns + self.new_columns


class LayerFeed(Protocol):
    """Brings hit KV in and takes new KV out, layer by layer, while the model computes."""

    def load(self, layer: int) -> Tensor:
        """The HBM buffer of `layer` with every row's hit tokens in place; waits for them."""
        ...

    def store(self, layer: int) -> None:
        """The buffer of `layer` now holds every row's new tokens too; it may be reused once taken."""
        ...


@dataclass(frozen=True, slots=True)
class GroupLinks:
    """What a runner shares with the other GPUs of its group."""

    send: Callable[[int], None]
    """Returns when so many bytes of collectives have passed this GPU's compute NIC."""
    rounds: ForwardRounds | None
    """The group's prefill forwards. None: it forms no group."""


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One request of a decode batch: feed `token_id` at `position`; its KV lies in `block_table`."""

    token_id: int
    position: int
    block_table: Sequence[BlockId]
    prompt: PromptKeys = NO_KEYS
    """The context it began with, for a runner that checks the KV it is given."""


class ModelRunner(Protocol):
    """One model on one device. Not thread-safe: one engine loop owns it, but for `begin_decode`."""

    layout: BlockLayout
    device: torch.device
    pads: bool
    """Rows of a prefill batch cost as much as the longest."""
    padding_exact: bool
    """False: only rows of equal (hit, new) lengths may share a batch."""
    paged: bool
    """KV lies in pages of the runner's own, all layers of a batch at once: a block moves whole even where it
    is filled in part, and `prefill_hbm_bytes` bound a prefill batch."""
    prefill_profile: PrefillProfile | None
    """What a prefill takes; None: it is to be learnt."""
    attention_s: float | None
    """Seconds of attention in all layers of the last prefill; None where it cannot be told from the rest."""
    counts: TokenCounts

    @property
    def dtype(self) -> torch.dtype:
        """Element type of KV."""
        ...

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The last steps, oldest first, of a runner that models its times."""
        ...

    def link(self, links: GroupLinks) -> None:
        """Before the first step; a runner whose model lies on one GPU has no use for them."""
        ...

    def prefill(self, rows: Sequence[PrefillRow], feed: LayerFeed) -> Tensor:
        """Run `rows` layer by layer; logits of each row's last token [rows, vocabulary]."""
        ...

    def new_buffer(self, shape: BatchShape) -> Tensor:
        """An HBM buffer for one layer of a prefill batch, zeroed (a masked NaN is still a NaN)."""
        ...

    def make_pool(self, num_blocks: int) -> Tensor:
        """Allocate the paged pool [layers, num_blocks, block_tokens, token_elements], once."""
        ...

    def begin_decode(self, row: DecodeRow) -> None:
        """A row's context lies in the pool: for a runner that checks it. Called beside `decode`."""
        ...

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Feed one token per row through the paged pool; next-token logits [rows, vocabulary]."""
        ...

    def weight_sizes(self) -> dict[str, int]:
        """Bytes of every weight as `read_weights` gives it, by name; tied ones once."""
        ...

    def read_weights(self, names: Sequence[str]) -> list[NamedArray]:
        """Copies of these weights in host memory, as `load_weights` takes them."""
        ...

    def load_weights(self, bucket: Iterable[NamedArray]) -> None:
        """Copy the named tensors into the model; other tensors stay. Used from `weights_loaded` on."""
        ...

    def weights_loaded(self) -> None:
        """That was all of the new weights."""
        ...

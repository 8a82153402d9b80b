"""A context's KV as paced engines would have written it, made without them.

A replay that begins in the middle of a session needs the KV before it in the store. Computing it would take
as long as the session took; the pattern depends on the token ids alone, so whoever has a store writes it.
numpy only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.model.kv_pattern import KVPattern, chain_start
from engines.model.paced_spec import WORD_BYTES, PacedSpec
from engines.types import PromptKeys
from kvstore.keys import BlockKey, KeyChain


@dataclass(frozen=True, slots=True)
class PacedHistory:
    """The whole blocks of one context."""

    spec: PacedSpec
    token_ids: array[int]
    chain_root: BlockKey
    block_tokens: int

    def blocks(self) -> Iterator[tuple[BlockKey, BlockKey, npt.NDArray[np.uint8]]]:
        """Parent key, key and bytes of each Full Block, in order."""
        keys = KeyChain(self.chain_root, self.block_tokens)
        keys.extend(self.token_ids)
        pattern = KVPattern(self.spec.profile.num_layers, self.spec.layer_bytes // WORD_BYTES)
        chain = pattern.chain(chain_start(PromptKeys(self.chain_root, ())), np.array(self.token_ids))
        offsets_LW = pattern.layer_L[:, None] + pattern.column_W[None, :]
        parent = self.chain_root
        for index, key in enumerate(keys.keys):
            chain_T = chain[index * self.block_tokens : (index + 1) * self.block_tokens]
            words_LTW = chain_T[None, :, None] + offsets_LW[:, None, :]
            yield parent, key, words_LTW.reshape(-1).view(np.uint8)
            parent = key

"""Where each byte of a KV block lies.

Decides the byte arithmetic of Layer Blocks and Full Blocks (DualPath, arXiv 2602.21548, section 4.1)
and nothing else: it knows no tensors, no files and no requests.

    Layer Block  [block_tokens, bytes_per_token]          one layer of one block
    Full Block   [num_layers, block_tokens, bytes_per_token]   Layer Blocks back to back
    token        group 0 | group 1 | ...                  token-major, so a run of tokens is one byte range
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from kvstore.errors import LayoutError

PAGE_BYTES = 4096
MAX_BLOCK_TOKENS = 128

Retention = Literal["persistent", "session"]


@dataclass(frozen=True, slots=True)
class KVGroup:
    """One named part of a token's KV in one layer: k, v, an MLA latent, indexer keys."""

    name: str
    bytes_per_token: int
    retention: Retention = "persistent"


@dataclass(frozen=True, slots=True)
class KVFormat:
    """What the bytes mean. Two engines may share a block only if their formats are equal."""

    dtype: str
    num_layers: int
    groups: tuple[KVGroup, ...]
    shard_index: int = 0
    shard_count: int = 1

    def __post_init__(self) -> None:
        if self.num_layers < 1 or not self.groups:
            raise LayoutError(f"a KV format needs layers and groups, got {self}")
        if any(group.bytes_per_token < 1 for group in self.groups):
            raise LayoutError(f"every KV group needs bytes_per_token >= 1, got {self.groups}")

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in one layer, all groups."""
        return sum(group.bytes_per_token for group in self.groups)

    def digest(self) -> bytes:
        """16 bytes that differ whenever a reader would read the bytes differently."""
        text = repr((self.dtype, self.num_layers, self.groups, self.shard_index, self.shard_count))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Byte addresses inside a Full Block."""

    format: KVFormat
    block_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.block_tokens <= MAX_BLOCK_TOKENS:
            raise LayoutError(f"block_tokens must be 1..{MAX_BLOCK_TOKENS}, got {self.block_tokens}")

    @property
    def num_layers(self) -> int:
        return self.format.num_layers

    @property
    def token_bytes(self) -> int:
        return self.format.bytes_per_token

    @property
    def layer_block_bytes(self) -> int:
        return self.block_tokens * self.token_bytes

    @property
    def full_block_bytes(self) -> int:
        return self.num_layers * self.layer_block_bytes

    @property
    def slot_bytes(self) -> int:
        """A staging slot: one Full Block, rounded up to whole pages so that O_DIRECT may use it."""
        return -(-self.full_block_bytes // PAGE_BYTES) * PAGE_BYTES

    def layer_offset(self, layer: int) -> int:
        """Byte offset of `layer` inside a slot."""
        return layer * self.layer_block_bytes

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens, the last one perhaps partly filled."""
        return -(-num_tokens // self.block_tokens)

    def tokens_in_block(self, block: int, num_tokens: int) -> int:
        """How many of a context's `num_tokens` tokens lie in its `block`-th block."""
        return min(self.block_tokens, num_tokens - block * self.block_tokens)

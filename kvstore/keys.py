"""Names of KV blocks.

A key is a chained hash, so equal keys mean equal tokens from the start of the context, computed
under the same weights in the same format. The root of a chain carries everything but the tokens:

    root    = H(weights id, adapter id, KV format, salt)
    key[i]  = H(key[i-1], token ids of block i)

An integer version alone is never part of a key: two runs that both stand at version 1 hold different
weights, and their `weights id`s differ.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NewType

from kvstore.layout import KVFormat

BlockKey = NewType("BlockKey", bytes)
WeightsId = NewType("WeightsId", str)

KEY_BYTES = 16


def chain_root(
    weights_id: WeightsId, kv_format: KVFormat, *, adapter_id: str = "", salt: str = ""
) -> BlockKey:
    """The parent key of every context's first block."""
    parts = (weights_id.encode(), adapter_id.encode(), kv_format.digest(), salt.encode())
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + part)
    return BlockKey(digest.digest())


def weights_id_of_files(files: Iterable[Path]) -> WeightsId:
    """Digest of the weight files: the weights id of version 0."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return WeightsId(digest.hexdigest()[:32])


def weights_id_after_update(base: WeightsId, run_id: str, version: int) -> WeightsId:
    """The weights id of `version` >= 1 of run `run_id`, which began from `base`."""
    text = f"{base}\0{run_id}\0{version}"
    return WeightsId(hashlib.sha256(text.encode()).hexdigest()[:32])


class KeyChain:
    """The keys of one growing context; it hashes only what is appended.

    `tail` holds the ids of the last, unfinished block: they have no key yet.
    """

    def __init__(self, root: BlockKey, block_tokens: int) -> None:
        self.root = root
        self.block_tokens = block_tokens
        self.keys: list[BlockKey] = []
        self.parent = root
        """What the next block's key is chained to."""
        self.tail = array("i")

    @property
    def num_tokens(self) -> int:
        return len(self.keys) * self.block_tokens + len(self.tail)

    def copy(self) -> KeyChain:
        """A chain that goes its own way from here."""
        copy = KeyChain(self.root, self.block_tokens)
        copy.keys, copy.parent, copy.tail = self.keys[:], self.parent, self.tail[:]
        return copy

    def branch(self, num_blocks: int, token_ids: Sequence[int], mark: str) -> None:
        """Keep the keys of the first blocks; `token_ids` are all that follow them, whose keys become this
        chain's alone, told from all others' by `mark`."""
        del self.keys[num_blocks:]
        before = self.keys[-1] if self.keys else self.root
        self.parent = BlockKey(hashlib.blake2b(before + mark.encode(), digest_size=KEY_BYTES).digest())
        self.tail = array("i")
        self.extend(token_ids)

    def extend(self, token_ids: Sequence[int]) -> list[BlockKey]:
        """Append ids; return the keys of the blocks this completed."""
        self.tail.extend(token_ids)
        parent, start = self.parent, 0
        completed = []
        while len(self.tail) - start >= self.block_tokens:
            parent = block_key(parent, self.tail[start : start + self.block_tokens])
            completed.append(parent)
            start += self.block_tokens
        del self.tail[:start]
        self.keys.extend(completed)
        self.parent = parent
        return completed


def block_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """The key of the block of `token_ids` that follows the block of `parent`."""
    digest = hashlib.blake2b(parent, digest_size=KEY_BYTES)
    digest.update(array("i", token_ids).tobytes())
    return BlockKey(digest.digest())

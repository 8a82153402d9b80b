"""An agent's growing context: its token ids and the keys of its blocks.

The holder appends; keys are hashed once, for what was appended. The chain's root names the weights, so
after a weight update the engines' client re-roots the context, and every key of it changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from kvstore.keys import BlockKey, KeyChain


class Context:
    """Append-only token ids with their key chain."""

    def __init__(self, root: BlockKey, block_tokens: int) -> None:
        self.token_ids = array("i")
        self._chain = KeyChain(root, block_tokens)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def root(self) -> BlockKey:
        return self._chain.root

    @property
    def keys(self) -> tuple[BlockKey, ...]:
        """Keys of the whole blocks so far."""
        return tuple(self._chain.keys)

    def append(self, token_ids: Sequence[int]) -> None:
        self.token_ids.extend(token_ids)
        self._chain.extend(token_ids)

    def reroot(self, root: BlockKey) -> None:
        """Name the same tokens under other weights: every key changes."""
        if root == self._chain.root:
            return
        self._chain = KeyChain(root, self._chain.block_tokens)
        self._chain.extend(self.token_ids)

    def extended(self, token_ids: Sequence[int]) -> Context:
        """A copy that goes on with `token_ids`."""
        copy = Context(self._chain.root, self._chain.block_tokens)
        copy.token_ids = self.token_ids[:]
        copy._chain = self._chain.copy()
        copy.append(token_ids)
        return copy

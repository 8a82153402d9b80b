"""An agent's growing context: its token ids and the keys of its blocks.

The holder appends; keys are hashed once, for what was appended. The chain's root names the weights. After a
weight update the engines' client either re-roots the context, and every key of it changes, or keeps the keys
of what the old weights computed: then what the new ones compute over that KV gets keys that are this
context's alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from engines.types import Weights
from kvstore.keys import BlockKey, KeyChain, WeightsId


class Context:
    """Append-only token ids with their key chain."""

    def __init__(self, root: BlockKey, block_tokens: int) -> None:
        self.token_ids = array("i")
        self.weights: Weights | None = None
        """Those that the context was named for last; None: it has taken no turn yet."""
        self.kv_weights_id: WeightsId | None = None
        """Those its first keys name."""
        self.num_computed = 0
        """Tokens from its start whose KV those weights have made or been given."""
        self.num_kept_blocks = 0
        """Whole blocks from its start whose KV is of older weights."""
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

    @property
    def parent(self) -> BlockKey:
        """What the key of the block that is not whole yet is chained to."""
        return self._chain.parent

    @property
    def num_computed_blocks(self) -> int:
        """Whole blocks that were computed under the weights the context was named for last. The last token
        of a prompt is always computed anew, so its block is none."""
        return max(0, min(self.num_computed, len(self) - 1)) // self._chain.block_tokens

    def append(self, token_ids: Sequence[int]) -> None:
        self.token_ids.extend(token_ids)
        self._chain.extend(token_ids)

    def reroot(self, root: BlockKey) -> None:
        """Name the same tokens under other weights: every key changes."""
        if root == self._chain.root:
            return
        self._chain = KeyChain(root, self._chain.block_tokens)
        self._chain.extend(self.token_ids)
        self.num_kept_blocks = 0

    def keep(self, num_blocks: int, mark: str) -> None:
        """The first blocks keep their keys, and what they hold is older KV; `mark` tells the others' keys
        from those of any other context."""
        self._chain.branch(num_blocks, self.token_ids[num_blocks * self._chain.block_tokens :], mark)
        self.num_kept_blocks = num_blocks

    def extended(self, token_ids: Sequence[int]) -> Context:
        """A copy that goes on with `token_ids`."""
        copy = Context(self._chain.root, self._chain.block_tokens)
        copy.token_ids = self.token_ids[:]
        copy._chain = self._chain.copy()
        copy.kv_weights_id, copy.num_kept_blocks = self.kv_weights_id, self.num_kept_blocks
        copy.append(token_ids)
        return copy

"""The stored prefixes that were looked up last, so that a context that has grown is not looked up anew.

Pure. A key names its block and all before it (kvstore.keys), so two contexts that share a key share the whole
prefix: what was found for one is what would be found for the other, as long as no block was lost or moved
since. That is all it relies on, and one loss makes it forget everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from kvstore.indexed_blocks import NO_BLOCKS, IndexedBlocks
from kvstore.keys import BlockKey

_PROBES = 64
"""A turn adds fewer blocks than this; a context that grew by more is looked up from its start."""


class MatchedPrefixes:
    """Prefixes by the key of their last block, the least recently matched first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._prefixes: OrderedDict[BlockKey, IndexedBlocks] = OrderedDict()
        self._num_losses = 0

    def longest(self, keys: Sequence[BlockKey], num_losses: int) -> IndexedBlocks:
        """The longest known prefix of `keys`; `num_losses` tells if any were lost since."""
        if num_losses != self._num_losses:
            self._prefixes.clear()
            self._num_losses = num_losses
        for end in range(len(keys), max(0, len(keys) - _PROBES), -1):
            found = self._prefixes.get(keys[end - 1])
            if found is not None:
                return found
        return NO_BLOCKS

    def remember(self, before: IndexedBlocks, stored: IndexedBlocks) -> None:
        """A context that began with `before` has `stored` now."""
        if not len(stored):
            return
        if len(before):
            self._prefixes.pop(before.keys[-1], None)
        self._prefixes[stored.keys[-1]] = stored
        if len(self._prefixes) > self._most:
            self._prefixes.popitem(last=False)

"""Which blocks of a decode engine's paged KV pool are free.

Pure bookkeeping over block ids; it knows no tensors. A request's blocks may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.types import BlockId


class BlockPool:
    """Free and used block ids of one pool. Invariant (`check`): each id is in exactly one of both."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = [BlockId(i) for i in reversed(range(num_blocks))]
        self._used: set[BlockId] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, num_blocks: int) -> list[BlockId] | None:
        """`num_blocks` ids, or None (and nothing taken) if fewer are free."""
        if num_blocks > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(num_blocks)]
        self._used.update(taken)
        return taken

    def give_back(self, block_ids: Sequence[BlockId]) -> None:
        for block_id in block_ids:
            assert block_id in self._used, f"block {block_id} given back twice"
            self._used.remove(block_id)
            self._free.append(block_id)

    def check(self) -> None:
        assert len(self._free) + len(self._used) == self.num_blocks
        assert not self._used.intersection(self._free)

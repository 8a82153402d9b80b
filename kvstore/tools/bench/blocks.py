"""A batch of blocks to move: memory, keys, checksums, and what a store is asked to do with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from kvstore.checksum import layer_checksums
from kvstore.direct_io import aligned_buffer
from kvstore.errors import StoreError
from kvstore.keys import BlockKey, WeightsId, chain_root
from kvstore.layout import BlockLayout
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockStore, BlockWrite, Bytes, ReadStatus

WEIGHTS = WeightsId("bench")
DEADLINE_S = 120.0


class Blocks:
    """As many random blocks of one layout as fit into `nbytes`, each in its own page-aligned slot."""

    def __init__(self, layout: BlockLayout, nbytes: int) -> None:
        self.layout = layout
        self.count = max(1, nbytes // layout.slot_bytes)
        self.memory = aligned_buffer(self.count * layout.slot_bytes)
        self.memory[:] = np.frombuffer(np.random.default_rng(0).bytes(len(self.memory)), np.uint8)
        self.slots: list[Bytes] = list(self.memory.reshape(self.count, layout.slot_bytes))
        self.keys = [_key(number) for number in range(self.count)]
        self.checksums = [layer_checksums(layout, slot) for slot in self.slots]

    @property
    def nbytes(self) -> int:
        """Of all slots: what both sides move."""
        return len(self.memory)

    def writes(self) -> list[BlockWrite]:
        """All blocks, their checksums known from where they were made, as engines have them."""
        parents = [chain_root(WEIGHTS, self.layout.format), *self.keys]
        return [
            BlockWrite(key, parent, WEIGHTS, slot, checksums)
            for key, parent, slot, checksums in zip(
                self.keys, parents, self.slots, self.checksums, strict=False
            )
        ]

    def reads(self, locations: Sequence[BlockLocation], order: Sequence[int]) -> list[BlockRead]:
        """All blocks in `order`, each into its own slot."""
        return [BlockRead(self.keys[i], locations[i], self.slots[i]) for i in order]


def write_all(store: BlockStore, writes: Sequence[BlockWrite]) -> list[BlockLocation]:
    """Write the batch. Raises StoreError where a block was not taken: then no figure would mean anything."""
    locations = store.write(writes, DEADLINE_S)
    stored = [location for location in locations if location is not None]
    if len(stored) < len(writes):
        raise StoreError(f"{len(writes) - len(stored)} of {len(writes)} blocks were not stored")
    return stored


def check_read(results: Sequence[BlockReadResult]) -> None:
    """Raises StoreError where a block did not arrive."""
    failed = [result.status.value for result in results if result.status is not ReadStatus.OK]
    if failed:
        raise StoreError(f"{len(failed)} of {len(results)} blocks were not read: {failed[0]}")


def _key(number: int) -> BlockKey:
    return BlockKey(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest())

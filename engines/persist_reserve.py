"""The staging slots a decode engine keeps for itself, to persist generated blocks from, and how many at once.

Pure. Blocks leave in packs of `kvstore.pack_bytes`, so that what the store writes is large where blocks are
small. A reserve has room for two packs: one is filled while the other is written. It never takes more than
a share of a node's memory; where blocks are so large, or the memory so small, packs are smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.types import SlotId

PACKS = 2
LARGEST_SHARE = 8
"""All reserves of a node together take at most one in so many of its slots, but for what is asked for."""


@dataclass(frozen=True, slots=True)
class PersistReserve:
    """One decode engine's own slots, and how many blocks it writes together."""

    slots: tuple[SlotId, ...]
    pack_blocks: int


def num_reserve_slots(
    *, least: int, pack_bytes: int, block_bytes: int, num_slots: int, num_engines: int
) -> int:
    """Slots for each of a node's `num_engines` decode engines: `least`, or two packs if there is room.

    `num_slots` are the node's; blocks have `block_bytes`.
    """
    share = num_slots // (LARGEST_SHARE * num_engines)
    return max(least, min(PACKS * blocks_per_pack(pack_bytes, block_bytes), share))


def reserve_of(slots: Sequence[SlotId], *, pack_bytes: int, block_bytes: int) -> PersistReserve:
    """What to do with `slots`, one at least: packs of `pack_bytes`, but no larger than half of them."""
    return PersistReserve(
        tuple(slots), min(blocks_per_pack(pack_bytes, block_bytes), max(1, len(slots) // PACKS))
    )


def blocks_per_pack(pack_bytes: int, block_bytes: int) -> int:
    """Blocks of `block_bytes` that make at least `pack_bytes`."""
    return -(-pack_bytes // block_bytes)

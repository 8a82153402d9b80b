"""Where each block of a prompt's hit comes from: which node's storage NIC, or the prefill node's memory.

Pure policy. How many blocks each side reads is decided in engines.scheduling.read_sides.
"""

from __future__ import annotations

from collections.abc import Set
from itertools import groupby

from engines.types import ReadRange, ReadSide
from kvstore.indexed_blocks import IndexedBlocks
from kvstore.keys import BlockKey


def ranges_of(
    hit: IndexedBlocks, num_on_prefill: int, in_dram: Set[BlockKey] = frozenset()
) -> tuple[ReadRange, ...]:
    """The plan that reads the first `num_on_prefill` blocks that are not `in_dram` on the prefill side."""
    if not in_dram:
        ends = (ReadSide.PREFILL, 0, num_on_prefill), (ReadSide.DECODE, num_on_prefill, len(hit))
        return tuple(ReadRange(side, start, hit[start:end]) for side, start, end in ends if end > start)
    sides = []
    for key in hit.keys:
        if key in in_dram:
            sides.append(ReadSide.DRAM)
            continue
        sides.append(ReadSide.PREFILL if num_on_prefill > 0 else ReadSide.DECODE)
        num_on_prefill -= 1
    ranges: list[ReadRange] = []
    start = 0
    for side, same in groupby(sides):
        length = len(list(same))
        ranges.append(ReadRange(side, start, hit[start : start + length]))
        start += length
    return tuple(ranges)


def num_on(side: ReadSide, plan: tuple[ReadRange, ...]) -> int:
    """Blocks that come from `side`."""
    return sum(len(part.blocks) for part in plan if part.side is side)


def keys_on(side: ReadSide, plan: tuple[ReadRange, ...]) -> list[BlockKey]:
    """Keys of the blocks that come from `side`, in order."""
    return [key for part in plan if part.side is side for key in part.blocks.keys]

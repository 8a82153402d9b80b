"""Where each block of a prompt's hit comes from: which node's storage NIC, or the prefill node's memory.

Pure policy. `basic` reads everything on the prefill side, but for the blocks that lie in the prefill node's
memory already: what a system without dual-path loading does, and the baseline of DualPath (arXiv 2602.21548,
section 7). Other plans return ranges on both sides.
"""

from __future__ import annotations

from collections.abc import Set
from itertools import groupby

from engines.types import ReadRange, ReadSide
from kvstore.keys import BlockKey
from kvstore.prefix_index import IndexedBlock


def basic(hit: tuple[IndexedBlock, ...], in_dram: Set[BlockKey] = frozenset()) -> tuple[ReadRange, ...]:
    """All blocks on the prefill side; `in_dram` are those that the prefill node has in memory."""
    ranges = []
    start = 0
    for side, group in groupby(hit, lambda b: ReadSide.DRAM if b.key in in_dram else ReadSide.PREFILL):
        blocks = tuple(group)
        ranges.append(ReadRange(side, start, blocks))
        start += len(blocks)
    return tuple(ranges)


def keys_on(side: ReadSide, plan: tuple[ReadRange, ...]) -> list[BlockKey]:
    """Keys of the blocks that come from `side`, in order."""
    return [block.key for part in plan if part.side is side for block in part.blocks]

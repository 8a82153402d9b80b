"""Which node's storage NIC reads each block of a prompt's hit.

Pure policy. `basic` reads everything on the prefill side: what a system without dual-path loading does, and
the baseline of DualPath (arXiv 2602.21548, section 7). Other plans return ranges on both sides.
"""

from __future__ import annotations

from engines.types import ReadRange, ReadSide
from kvstore.prefix_index import IndexedBlock


def basic(hit: tuple[IndexedBlock, ...]) -> tuple[ReadRange, ...]:
    """All blocks on the prefill side."""
    return (ReadRange(ReadSide.PREFILL, 0, hit),) if hit else ()


def num_blocks_on(side: ReadSide, plan: tuple[ReadRange, ...]) -> int:
    return sum(len(part.blocks) for part in plan if part.side is side)

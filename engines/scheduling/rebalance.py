"""Which blocks that are not read yet change sides while a prompt's hit is being read.

Pure policy, ours. Shares were chosen for the rates and queues known then; when a storage NIC slows down, the
side that would finish later gives up the end of what it has not begun. A block may always move to the decode
side, which has a slot for every prompt block; to the prefill side only while that has free slots.

Nothing moves unless the later finish comes sooner by `min_gain` of itself: rates measured 7 % high or low
move nothing at a gain of 0.25, so blocks do not go to and fro.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.read_messages import BlockSpan
from engines.scheduling.read_sides import SideLoad, prefill_share
from engines.types import ReadSide


@dataclass(frozen=True, slots=True)
class UnreadBlocks:
    """What a side has left to read of one prompt and has not begun."""

    spans: tuple[BlockSpan, ...]
    """In the order they are read."""
    load: SideLoad
    """The measured rate, and the bytes that are read before any of these blocks."""

    @property
    def num_blocks(self) -> int:
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True, slots=True)
class ReadMove:
    """Spans that the other side reads from now on."""

    to_side: ReadSide
    spans: tuple[BlockSpan, ...]

    @property
    def num_blocks(self) -> int:
        return sum(end - start for start, end in self.spans)


def rebalance(
    prefill: UnreadBlocks,
    decode: UnreadBlocks,
    *,
    block_bytes: int,
    free_prefill_slots: int,
    min_gain: float,
    min_blocks: int = 1,
) -> ReadMove | None:
    """What moves now, or None. At most `free_prefill_slots` blocks move to the prefill side."""
    total = prefill.num_blocks + decode.num_blocks
    share = prefill_share(total, block_bytes, prefill.load, decode.load)
    share = min(share, prefill.num_blocks + free_prefill_slots)
    num_moved = abs(share - prefill.num_blocks)
    if num_moved < max(min_blocks, 1):
        return None
    before_s = _later_finish_s(prefill, decode, prefill.num_blocks, block_bytes)
    after_s = _later_finish_s(prefill, decode, share, block_bytes)
    if before_s - after_s < min_gain * before_s:
        return None
    if share < prefill.num_blocks:
        return ReadMove(ReadSide.DECODE, _last(prefill.spans, num_moved))
    return ReadMove(ReadSide.PREFILL, _last(decode.spans, num_moved))


def _later_finish_s(prefill: UnreadBlocks, decode: UnreadBlocks, share: int, block_bytes: int) -> float:
    """When the later side has read its blocks, with `share` of all on the prefill side."""
    on_decode = prefill.num_blocks + decode.num_blocks - share
    return max(
        prefill.load.finish_s(share * block_bytes) if share else 0.0,
        decode.load.finish_s(on_decode * block_bytes) if on_decode else 0.0,
    )


def _last(spans: Sequence[BlockSpan], num_blocks: int) -> tuple[BlockSpan, ...]:
    """The blocks that would be read last, in the order they would have been read."""
    taken: list[BlockSpan] = []
    for start, end in reversed(spans):
        if num_blocks <= 0:
            break
        begin = max(start, end - num_blocks)
        taken.append((begin, end))
        num_blocks -= end - begin
    return tuple(reversed(taken))

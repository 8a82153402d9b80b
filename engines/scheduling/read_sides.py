"""Which side reads how much of a prompt's hit: the read plans.

Pure policy. `basic` reads everything on the prefill side: what a system without dual-path loading does, and
the baseline of DualPath (arXiv 2602.21548, section 7). `alternate` takes the two sides in turn. `dual` is
DualPath's (section 6.1): the whole hit on the side whose node has the shorter read queue, whatever the NICs'
rates. `split` is ours (the paper's future work, its section 7): both sides at once, in shares of whole blocks
such that both finish together, from the bytes that wait on each side and what its storage NIC carries. The
prompt's first blocks are read on the prefill side, the later ones on the decode side: one range each, in
order, so that every layer has blocks on both sides. Blocks in the prefill node's memory are read on neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engines.types import ReadSide

ReadPlanName = Literal["basic", "dual", "split", "alternate"]


@dataclass(frozen=True, slots=True)
class SideLoad:
    """One side's node, as a read plan sees it. Raises ValueError unless its NIC carries something."""

    queue_bytes: float
    """Bytes that are read before any block planned now."""
    bytes_per_s: float
    """What its storage NIC carries."""

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_s < math.inf:
            raise ValueError(f"a storage NIC's rate must be above 0 bytes/s, got {self.bytes_per_s}")
        if not 0 <= self.queue_bytes < math.inf:
            raise ValueError(f"a read queue must hold 0 bytes or more, got {self.queue_bytes}")

    def finish_s(self, nbytes: float) -> float:
        """Seconds from now until `nbytes` more have been read too."""
        return (self.queue_bytes + nbytes) / self.bytes_per_s


def shorter_side(prefill: SideLoad, decode: SideLoad, tie: ReadSide = ReadSide.PREFILL) -> ReadSide:
    """The side with fewer bytes in its queue."""
    if prefill.queue_bytes == decode.queue_bytes:
        return tie
    return ReadSide.PREFILL if prefill.queue_bytes < decode.queue_bytes else ReadSide.DECODE


def prefill_share(
    num_blocks: int,
    block_bytes: int,
    prefill: SideLoad,
    decode: SideLoad,
    tie: ReadSide = ReadSide.PREFILL,
) -> int:
    """Blocks of `num_blocks` that the prefill side reads so that the later side finishes soonest.

    Where both sides read, they finish within the time of one block on the slower one.
    """
    total_bytes = num_blocks * block_bytes
    even_bytes = (
        prefill.bytes_per_s * (decode.queue_bytes + total_bytes) - decode.bytes_per_s * prefill.queue_bytes
    ) / (prefill.bytes_per_s + decode.bytes_per_s)
    low = min(max(math.floor(even_bytes / block_bytes), 0), num_blocks)
    high = min(low + 1, num_blocks)

    def later_finish_s(share: int) -> float:
        on_decode = num_blocks - share
        return max(
            prefill.finish_s(share * block_bytes) if share else 0.0,
            decode.finish_s(on_decode * block_bytes) if on_decode else 0.0,
        )

    low_s, high_s = later_finish_s(low), later_finish_s(high)
    if low_s == high_s:
        return high if tie is ReadSide.PREFILL else low
    return low if low_s < high_s else high


def blocks_on_prefill(
    plan: ReadPlanName,
    num_blocks: int,
    block_bytes: int,
    loads: Callable[[], tuple[SideLoad, SideLoad]],
    *,
    num_planned: int,
    tie: ReadSide = ReadSide.PREFILL,
) -> int:
    """Blocks of `num_blocks`, none of which is in memory, that `plan` reads on the prefill side.

    `loads` tells both sides' loads, if the plan looks at them; `num_planned` prompts were planned before.
    """
    if plan == "basic" or not num_blocks:
        return num_blocks
    if plan == "alternate":
        return 0 if num_planned % 2 else num_blocks
    prefill, decode = loads()
    if plan == "dual":
        return num_blocks if shorter_side(prefill, decode, tie) is ReadSide.PREFILL else 0
    return prefill_share(num_blocks, block_bytes, prefill, decode, tie)


def sides_read(
    plan: ReadPlanName, prefill: SideLoad, decode: SideLoad, tie: ReadSide = ReadSide.PREFILL
) -> tuple[SideLoad, ...]:
    """The sides that `plan` would read a prompt on now; `alternate` counts as the prefill side."""
    if plan == "split":
        return prefill, decode
    if plan == "dual":
        return (prefill if shorter_side(prefill, decode, tie) is ReadSide.PREFILL else decode,)
    return (prefill,)

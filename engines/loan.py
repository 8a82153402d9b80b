"""What one placed turn has of its nodes' slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.read_messages import MovedBlock
from engines.types import NodeId, Placement, ReadSide, SlotId
from kvstore.keys import BlockKey


@dataclass(slots=True)
class Loan:
    """One per placed turn, for as long as it has anything."""

    placement: Placement
    new_keys: tuple[BlockKey, ...]
    """Prompt blocks it makes; once it is handed over, the decode engine announces what became of them."""
    client: str = ""
    """Whose turn it is."""
    prefilling: bool = True
    handed_over: bool = False
    """The decode engine has taken the turn over: it alone gives the decode slots back."""
    finished: bool = False
    slots: dict[NodeId, set[SlotId]] = field(default_factory=dict)
    """Its own slots."""
    prefill_slots: set[SlotId] = field(default_factory=set)
    """Those of them that blocks are read into on the prefill side."""
    moved_slots: dict[int, SlotId] = field(default_factory=dict)
    """Of these, by block, those of blocks that were to be read elsewhere first."""
    shared: list[tuple[BlockKey, SlotId]] = field(default_factory=list)
    """Blocks in the prefill node's DRAM that it uses."""
    settled: set[tuple[NodeId, SlotId]] = field(default_factory=set)
    """Slots whose late reads have settled before anybody said that they were late."""
    segments: frozenset[str] = field(init=False)
    """Segments that blocks of the hit are read from."""

    def __post_init__(self) -> None:
        parts = [part for part in self.placement.read_plan if part.side is not ReadSide.DRAM]
        self.segments = frozenset().union(*(part.blocks.segment_names() for part in parts))

    @property
    def over(self) -> bool:
        return self.finished and not any(self.slots.values())

    def prefill_slot(self, block: int) -> SlotId | None:
        """Its own slot for the prompt's block `block` on the prefill side, if it has one."""
        slot = self.moved_slots.get(block, self.placement.prefill_slot(block))
        return slot if slot in self.prefill_slots else None

    def read_blocks(self, moved: Sequence[MovedBlock]) -> list[tuple[BlockKey, SlotId]]:
        """The hit's blocks that were read from storage into own slots on the prefill node, in order."""
        sides = {block.block: block for block in moved}
        read = []
        for number, (side, slot, block) in enumerate(self.placement.hit_blocks()):
            final = sides.get(number)
            if final is not None:
                side, slot = final.side, final.slot
            if side is ReadSide.PREFILL and slot in self.prefill_slots:
                read.append((block.key, slot))
        return read

"""What node agents, prefill engines and the scheduler tell one another of reads: asked for, moved, ended.

All of it crosses process boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from engines.types import NodeId, ReadSide, RequestId, SlotId
from kvstore.keys import BlockKey
from kvstore.pickled_by_fields import pickled_by_fields
from kvstore.store import BlockLocation, BlockReadResult

LoadId = NewType("LoadId", int)
"""What a node was told to read in one call, as the node names it."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class BlockLoad:
    """Read one block into a slot of the node's staging memory, or see that it is there already."""

    block: int
    """Its place in the prompt."""
    slot: SlotId
    key: BlockKey
    location: BlockLocation | None
    """None: the block is in the slot since an earlier load."""
    moved: bool = False
    """It was to be read on the other side."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class LostBlock:
    """A hit block of a placed turn that could not be used."""

    key: BlockKey
    slot: SlotId
    """Of the decode node if it was read there, else of the prefill node."""
    side: ReadSide
    late: bool
    """Its read is still on its way and may write into the slot until the node says that it has settled."""


BlockSpan = tuple[int, int]
"""Blocks [start, end) of a prompt."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class UnreadReads:
    """What a node was told to read for a turn and has not begun."""

    request_id: RequestId
    side: ReadSide
    spans: tuple[BlockSpan, ...]
    """In the order they will be read."""
    ahead_bytes: int
    """Bytes that the node reads before the first of them."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class ReadReport:
    """What a node has read since it started, and what it has not begun; totals only grow."""

    node_id: NodeId
    finished_tokens: int
    """Of blocks read from the store, failed, or given up."""
    read_bytes: int
    busy_s: float
    """Seconds in which there was something to read."""
    unread: tuple[UnreadReads, ...]


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """The answer to a report: give up what you have not begun of these blocks; the other side reads it."""

    request_id: RequestId
    to_side: ReadSide
    spans: tuple[BlockSpan, ...]
    slots: tuple[SlotId, ...]
    """To ReadSide.PREFILL: a slot of the prefill node for each block of `spans`. Else empty: the decode
    node has a slot for every prompt block."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """A node's answer to a load: it is over, or part of it is to be read on the other side."""

    load_id: LoadId
    results: tuple[BlockReadResult | None, ...] | None
    """For each block that did not move, in the order it was asked for; None for one that was dropped before
    it began. None instead of all: the load goes on, and its rest must be asked for."""
    moved: tuple[MoveOrder, ...]
    """What has been given up since the last answer: orders, as far as they were carried out."""


@dataclass(frozen=True, slots=True)
class MovedBlock:
    """A block of a turn's hit that was read on another side than its placement says."""

    block: int
    """Its place in the prompt."""
    side: ReadSide
    slot: SlotId

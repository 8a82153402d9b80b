"""Which segments go when a store is full.

Pure: rows in, an order out; no files, no clock. Decides, in this order:
  older weights go first, the current ones last;
  within weights, segments no hit can ever reach (orphaned ones) go first;
  then the least recently used, where a segment counts as used as late as any segment of the same writer
  that continues its blocks, so a writer's prefixes stay whole;
  among equals the one created first (of a store found at opening nothing but that is known), then the newest.
A pinned segment never goes. It does not know who pins, nor when there is too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvstore.keys import WeightsId


@dataclass(frozen=True, slots=True)
class SegmentUse:
    """One segment, as far as eviction cares."""

    name: str
    weights_id: WeightsId
    sequence: int
    """The how-manieth of its writer."""
    nbytes: int
    created_s: float
    """Its writer's wall clock, seconds since the epoch; infinite for one that appeared after the index."""
    last_use: int
    """Tick of its latest read or append; ticks count up. 0: not since the index began."""
    orphaned: bool = False
    """Can no block in it be reached from a context's start any more?"""
    pinned: bool = False
    continues: tuple[str, ...] = ()
    """Other segments of the same writer and weights that hold the parent of a reachable block of this one."""


def choose_victims(segments: Sequence[SegmentUse], excess_bytes: int, current: WeightsId) -> list[str]:
    """Names of the first segments in eviction order that hold `excess_bytes` together, or of all."""
    victims = []
    for segment in eviction_order(segments, current):
        if excess_bytes <= 0:
            break
        victims.append(segment.name)
        excess_bytes -= segment.nbytes
    return victims


def eviction_order(segments: Sequence[SegmentUse], current: WeightsId) -> list[SegmentUse]:
    """The segments that may go, first to go first."""
    ages = _weights_by_age(segments, current)
    # From the one to keep longest: whatever it continues, and what that continues, is kept longer still.
    keep = sorted(
        segments,
        key=lambda segment: (
            ages[segment.weights_id],
            not segment.orphaned,
            segment.last_use,
            segment.created_s,
            -segment.sequence,
            segment.name,
        ),
        reverse=True,
    )
    kept = _with_what_they_continue(keep)
    return [segment for segment in reversed(kept) if not segment.pinned]


def _weights_by_age(segments: Iterable[SegmentUse], current: WeightsId) -> dict[WeightsId, int]:
    """Rank of each weights id: 0 for the oldest. Weights are as new as their newest segment."""
    newest: dict[WeightsId, tuple[bool, float, int]] = {}
    for segment in segments:
        age = (segment.weights_id == current, segment.created_s, segment.last_use)
        newest[segment.weights_id] = max(age, newest.get(segment.weights_id, age))
    ordered = sorted(newest, key=lambda weights_id: (newest[weights_id], weights_id))
    return {weights_id: rank for rank, weights_id in enumerate(ordered)}


def _with_what_they_continue(keep: Sequence[SegmentUse]) -> list[SegmentUse]:
    """`keep`, with every segment moved behind all that it continues: a depth-first walk, parents first.

    Segments that continue each other (a block was written again later) come in the order of the walk.
    """
    by_name = {segment.name: segment for segment in keep}
    seen: set[str] = set()
    ordered: list[SegmentUse] = []
    for start in keep:
        if start.name in seen:
            continue
        seen.add(start.name)
        path = [(start, iter(sorted(start.continues)))]
        while path:
            segment, parents = path[-1]
            parent = next((p for p in parents if p in by_name and p not in seen), None)
            if parent is None:
                ordered.append(segment)
                path.pop()
            else:
                seen.add(parent)
                path.append((by_name[parent], iter(sorted(by_name[parent].continues))))
    return ordered

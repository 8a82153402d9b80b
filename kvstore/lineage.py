"""Which stored blocks can still be reached from a context's start, and which segments continue which.

Pure arithmetic on the arrays of one weights id's segments, a fraction of a second for a million blocks; it
is done when something must be evicted, not when a block is announced. A block is told by the first eight
bytes of its key: a key is a hash, and two that agree there could only disturb an order of eviction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.indexed_segment import IndexedSegment
from kvstore.keys import BlockKey

_Numbers = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SegmentLineage:
    """How one segment's live blocks hang together with the others'."""

    num_orphans: int
    """Blocks with an ancestor that is not there."""
    continues: frozenset[int]
    """Ordinals of other segments that hold the parent of a block here that is no orphan."""


def trace(
    segments: Sequence[IndexedSegment], is_known: Callable[[BlockKey], bool]
) -> dict[int, SegmentLineage]:
    """The lineage of each of `segments`, all of one weights id, by ordinal.

    `is_known` is asked about parents that no segment holds: is it a context's start, or on its way?
    """
    live = [np.flatnonzero(np.frombuffer(segment.dead, np.uint8) == 0) for segment in segments]
    keys = _heads([segment.keys for segment in segments], live)
    parents = _heads([segment.parents for segment in segments], live)
    owner = np.repeat(np.arange(len(segments)), [len(records) for records in live])
    record = np.concatenate([*live, np.zeros(0, np.int64)])
    parent_of = _find(parents, keys)
    cut = parent_of < 0
    _, first, same = np.unique(parents[cut], return_index=True, return_inverse=True)
    known = [is_known(segments[owner[i]].parent(record[i])) for i in np.flatnonzero(cut)[first]]
    cut[cut] = ~np.array(known, np.bool_)[same]
    orphaned = _spread(cut, parent_of)
    return _by_segment(segments, owner, orphaned, parent_of)


def _heads(keys: Sequence[bytearray], live: Sequence[_Numbers]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each live record's key."""
    heads = [
        np.frombuffer(buffer, "<u8").reshape(-1, 2)[:, 0][records]
        for buffer, records in zip(keys, live, strict=True)
    ]
    return np.concatenate([*heads, np.zeros(0, np.uint64)])


def _find(parents: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]) -> _Numbers:
    """Where each of `parents` stands in `keys`; -1 where it does not."""
    found = np.full(len(keys), -1, np.int64)
    # Blocks of a turn are mostly appended in a row: no search for those.
    follows = np.flatnonzero(parents[1:] == keys[:-1]) + 1
    found[follows] = follows - 1
    others = np.flatnonzero(found < 0)
    order = np.argsort(keys)
    place = np.searchsorted(keys, parents[others], sorter=order)
    candidates = order[np.minimum(place, len(keys) - 1)]
    there = keys[candidates] == parents[others]
    found[others[there]] = candidates[there]
    return found


def _spread(cut: _Flags, parent_of: _Numbers) -> _Flags:
    """Blocks that are `cut` off, or descend from one that is. Each round looks twice as far up."""
    orphaned = cut.copy()
    ancestor = np.where(parent_of < 0, np.arange(len(cut)), parent_of)
    for _ in range(len(cut).bit_length()):
        orphaned |= orphaned[ancestor]
        further = ancestor[ancestor]
        if np.array_equal(further, ancestor):
            break
        ancestor = further
    return orphaned


def _by_segment(
    segments: Sequence[IndexedSegment], owner: _Numbers, orphaned: _Flags, parent_of: _Numbers
) -> dict[int, SegmentLineage]:
    num_orphans = np.bincount(owner[orphaned], minlength=len(segments))
    reached = ~orphaned & (parent_of >= 0)
    pairs = owner[reached] * len(segments) + owner[parent_of[reached]]
    continues: dict[int, set[int]] = {}
    for pair in np.unique(pairs).tolist():
        child, parent = divmod(pair, len(segments))
        if child != parent:
            continues.setdefault(child, set()).add(segments[parent].ordinal)
    return {
        segment.ordinal: SegmentLineage(int(num_orphans[i]), frozenset(continues.get(i, ())))
        for i, segment in enumerate(segments)
    }

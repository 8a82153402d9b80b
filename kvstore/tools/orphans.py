"""Segments that no hit can reach any more. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.indexed_segment import IndexedSegment
from kvstore.keys import WeightsId, chain_root
from kvstore.layout import BlockLayout
from kvstore.lineage import trace
from kvstore.segment_contents import SegmentContents


def orphaned_segments(found: Iterable[SegmentContents]) -> list[str]:
    """Names of the segments in which every block has an ancestor that is in none of `found`.

    A context begins at the chain root of its weights and format without adapter and salt: blocks stored
    under another root count as orphans.
    """
    versions: dict[tuple[WeightsId, BlockLayout], list[IndexedSegment]] = {}
    for contents in found:
        segments = versions.setdefault((contents.weights_id, contents.layout), [])
        segment = IndexedSegment(contents.name, contents.weights_id, len(segments), last_use=0)
        segment.extend(contents)
        segments.append(segment)
    orphaned = []
    for (weights_id, layout), segments in versions.items():
        roots = {chain_root(weights_id, layout.format)}
        lineage = trace(segments, roots.__contains__)
        orphaned += [s.name for s in segments if len(s) and lineage[s.ordinal].num_orphans == len(s)]
    return orphaned

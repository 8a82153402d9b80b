"""What lies in a store directory, added up: per KV format, per weights id, and what cannot be used.

Pure: it is fed what a scan found and decides how it is grouped. It knows no files, no lease and no table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kvstore.keys import WeightsId
from kvstore.layout import BlockLayout
from kvstore.segment_contents import BadSegment, SegmentContents


@dataclass(slots=True)
class StoredVersion:
    """Everything stored under one weights id in one KV format."""

    layout: BlockLayout
    weights_id: WeightsId
    oldest_s: float
    newest_s: float
    """When its first and its last segment were begun, seconds since the epoch by their writers' clocks."""
    segments: dict[str, int] = field(default_factory=dict)
    """Bytes of each file by its name."""
    num_sealed: int = 0
    num_blocks: int = 0
    """Records; a block that two processes wrote counts twice."""

    @property
    def nbytes(self) -> int:
        """Of its files, headers and padding included."""
        return sum(self.segments.values())

    @property
    def num_unsealed(self) -> int:
        """Segments without a footer: being written, or their writer died."""
        return len(self.segments) - self.num_sealed

    def add(self, contents: SegmentContents) -> None:
        self.oldest_s = min(self.oldest_s, contents.created_s)
        self.newest_s = max(self.newest_s, contents.created_s)
        self.segments[contents.name] = contents.nbytes
        self.num_sealed += contents.sealed
        self.num_blocks += len(contents)


@dataclass(frozen=True, slots=True)
class Inventory:
    """A whole directory."""

    versions: tuple[StoredVersion, ...]
    """By KV format, then newest first."""
    bad_segments: tuple[BadSegment, ...]

    @property
    def num_segments(self) -> int:
        return sum(len(version.segments) for version in self.versions) + len(self.bad_segments)

    @property
    def nbytes(self) -> int:
        """Of all segment files, bad ones included."""
        bad = sum(segment.nbytes for segment in self.bad_segments)
        return sum(version.nbytes for version in self.versions) + bad

    def formats(self) -> dict[BlockLayout, list[StoredVersion]]:
        """The versions of each KV format, newest first."""
        formats: dict[BlockLayout, list[StoredVersion]] = {}
        for version in self.versions:
            formats.setdefault(version.layout, []).append(version)
        return formats


def take_inventory(found: Iterable[SegmentContents | BadSegment]) -> Inventory:
    """Add up a scan, one segment at a time: contents are not kept."""
    versions: dict[tuple[BlockLayout, WeightsId], StoredVersion] = {}
    bad = []
    for segment in found:
        if isinstance(segment, BadSegment):
            bad.append(segment)
            continue
        name, began_s = (segment.layout, segment.weights_id), segment.created_s
        if name not in versions:
            versions[name] = StoredVersion(*name, began_s, began_s)
        versions[name].add(segment)
    ordered = sorted(versions.values(), key=_place)
    return Inventory(tuple(ordered), tuple(sorted(bad, key=lambda segment: segment.name)))


def _place(version: StoredVersion) -> tuple[bytes, int, float, str]:
    layout = version.layout
    return (layout.format.digest(), layout.block_tokens, -version.newest_s, version.weights_id)

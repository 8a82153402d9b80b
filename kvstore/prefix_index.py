"""Which blocks are stored where, how long a context's known prefix is, and which segments may go.

Pure: a table in memory, no I/O, no clock. It knows keys and opaque locations; who reads a block and
when waiting for a pending one is worth it is decided elsewhere, and so is when there is too much.

A block is *stored* once its location is announced. It is *pending* while a persist of it is on its
way; several engines may persist one block at once, so persists are counted. There is one table per
weights id, because weights go as a whole. A stored block costs about 200 bytes: its key in a table and
its record's columns in its segment; a BlockLocation is made only for a match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kvstore.eviction import SegmentUse, choose_victims
from kvstore.indexed_blocks import NO_BLOCKS, IndexedBlocks, SegmentColumn
from kvstore.indexed_segment import IndexedSegment
from kvstore.keys import BlockKey, WeightsId, chain_root
from kvstore.lineage import SegmentLineage, trace
from kvstore.matched_prefixes import MatchedPrefixes
from kvstore.segment_contents import SegmentContents
from kvstore.store import BlockLocation

# A table's value is where a stored block is, (segment's ordinal << RECORD_BITS) + record, or -persists of a
# pending one.
_Table = dict[BlockKey, int]
_RECORD_BITS = 32
_RECORD_MASK = (1 << _RECORD_BITS) - 1
_MOST_REMEMBERED = 1024
"""Contexts whose last match is kept, about 40 kB for each of 500 blocks."""


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest prefix of a context's blocks that are all stored or pending."""

    stored: IndexedBlocks
    """The prefix's stored blocks, in order."""
    pending: tuple[BlockKey, ...]
    """The prefix's pending blocks, in order; they may lie between stored ones."""
    num_leading: int
    """Stored blocks before the first pending one."""

    @property
    def hit(self) -> IndexedBlocks:
        """The stored blocks before the first pending one."""
        return self.stored[: self.num_leading]

    @property
    def num_blocks(self) -> int:
        return len(self.stored) + len(self.pending)


class PrefixIndex:
    """Locations of blocks by key, and the segments they lie in. One thread at a time."""

    def __init__(self) -> None:
        self._tables: dict[WeightsId, _Table] = {}
        self._segments: dict[int, IndexedSegment] = {}
        self._by_name: dict[str, IndexedSegment] = {}
        self._pins: dict[str, int] = {}
        self._roots: dict[WeightsId, set[BlockKey]] = {}
        self._next_ordinal = 0
        self._tick = 0
        self._num_orphans: int | None = 0
        self.num_pending = 0
        self.num_losses = 0
        """Grows when blocks that a lookup has found may be there no more, or lie elsewhere."""
        self._matched = MatchedPrefixes(_MOST_REMEMBERED)
        self.stored_bytes = 0
        """Bytes of all known segments, indexed or noted."""

    def __len__(self) -> int:
        """Stored and pending blocks."""
        return sum(len(table) for table in self._tables.values())

    @property
    def num_orphans(self) -> int:
        """Stored blocks that no hit can reach: an ancestor of theirs is neither stored nor pending.

        A pending one is taken to be within reach: what it follows is known when it is announced.
        Counted again when blocks went or came out of order since: a fraction of a second for a million.
        """
        if self._num_orphans is None:
            self._trace()
        assert self._num_orphans is not None
        return self._num_orphans

    def is_known(self, key: BlockKey) -> bool:
        """Whether the block is stored or pending."""
        return self._table_of(key) is not None

    def is_pending(self, key: BlockKey) -> bool:
        """Whether a persist of the block is on its way and the block is not stored yet."""
        table = self._table_of(key)
        return table is not None and table[key] < 0

    def is_stored(self, key: BlockKey) -> bool:
        """Whether the block is stored, as far as anybody knows."""
        table = self._table_of(key)
        return table is not None and table[key] >= 0

    def announce(
        self, key: BlockKey, location: BlockLocation, weights_id: WeightsId, parent: BlockKey
    ) -> None:
        """The block is stored at `location` and follows block `parent`; the newest announcement holds."""
        table = self._table(weights_id)
        entry = table.get(key)
        segment = self._segment(location.segment, weights_id)
        segment.last_use = self._next_tick()
        if entry is not None and entry >= 0:
            if self._location(entry) == location:
                return
            self._kill(entry)
        self.num_pending -= entry is not None and entry < 0
        self.stored_bytes -= segment.nbytes
        table[key] = self._entry(segment, segment.append(key, parent, location))
        self.stored_bytes += segment.nbytes
        if self._num_orphans != 0 or not self._stands(parent, table, weights_id):
            self._num_orphans = None

    def add_segment(self, contents: SegmentContents) -> None:
        """Take in a segment that recovery found; of keys that are known already, what is known holds.

        A segment whose blocks are being announced already is only noted: it will be announced whole.
        """
        table = self._table(contents.weights_id)
        segment = self._segment(contents.name, contents.weights_id)
        if len(segment):
            self.note_segment(contents.name, contents.weights_id, contents.nbytes, contents.created_s)
            return
        self.stored_bytes -= segment.nbytes
        segment.extend(contents)
        self.stored_bytes += segment.nbytes
        entry = self._entry(segment, 0)
        for key in segment.all_keys():
            if key in table:
                segment.kill(entry & _RECORD_MASK)
            else:
                table[key] = entry
            entry += 1
        self._roots.setdefault(contents.weights_id, set()).add(
            chain_root(contents.weights_id, contents.layout.format)
        )
        self._num_orphans = None

    def note_segment(self, name: str, weights_id: WeightsId, nbytes: int, created_s: float) -> None:
        """Segment `name` holds `nbytes` bytes, and began at `created_s` (infinite where nobody knows).

        Of a segment that is not known its blocks are not either: it counts for capacity and eviction only.
        """
        known = self._by_name.get(name)
        segment = self._segment(name, weights_id) if known is None else known
        before = segment.nbytes
        segment.note(nbytes, created_s)
        if segment.nbytes > before:
            segment.last_use = self._tick
        self.stored_bytes += segment.nbytes - before

    def segment_names(self) -> tuple[str, ...]:
        """All known segments, indexed or noted."""
        return tuple(self._by_name)

    def expect(self, keys: Iterable[BlockKey], weights_id: WeightsId) -> None:
        """A persist of each of `keys` is on its way; it ends with announce() or cancel()."""
        table = self._table(weights_id)
        for key in keys:
            entry = table.get(key)
            if entry is None:
                table[key] = -1
                self.num_pending += 1
                if self._num_orphans:
                    self._num_orphans = None
            elif entry < 0:
                table[key] = entry - 1

    def cancel(self, keys: Iterable[BlockKey]) -> None:
        """One persist of each of `keys` failed; the last one's failure ends the waiting."""
        for key in keys:
            table = self._table_of(key)
            if table is None or table[key] >= 0:
                continue
            if table[key] < -1:
                table[key] += 1
            else:
                del table[key]
                self.num_pending -= 1
                self._num_orphans = None

    def discard(self, key: BlockKey) -> bool:
        """Forget a stored block (it was lost or corrupt). A pending one stays: see cancel()."""
        table = self._table_of(key)
        if table is None or table[key] < 0:
            return False
        self._kill(table.pop(key))
        self._num_orphans = None
        return True

    def match(self, keys: Sequence[BlockKey]) -> PrefixMatch:
        """The longest prefix of `keys`, one context's chain from its start, whose blocks are all known.

        The segments its stored blocks lie in are read now, as far as eviction cares.
        """
        table = (self._table_of(keys[0]) if keys else None) or {}
        tick = self._next_tick()
        before = self._matched.longest(keys, self.num_losses)
        for segment in before.segments:
            self._by_name[segment.name].last_use = tick
        rest = keys[len(before) :]
        entries = list(map(table.get, rest))
        if None in entries:
            del entries[entries.index(None) :]
        found = np.array(entries, np.int64)
        is_stored = found >= 0
        if not len(before) and len(found) and is_stored[0]:
            self._learn_root(int(found[0]))
        if is_stored.all():
            stored = before.joined(self._stored(tuple(rest[: len(found)]), found, tick))
            self._matched.remember(before, stored)
            return PrefixMatch(stored, (), len(stored))
        known = list(zip(rest, is_stored.tolist(), strict=False))
        more = self._stored(tuple(key for key, there in known if there), found[is_stored], tick)
        pending = tuple(key for key, there in known if not there)
        return PrefixMatch(before.joined(more), pending, len(before) + int(is_stored.argmin()))

    def pin(self, segments: Iterable[str]) -> None:
        """Blocks in these segments are being read: none is a victim until as many unpin() as pin()."""
        for name in segments:
            self._pins[name] = self._pins.get(name, 0) + 1

    def unpin(self, segments: Iterable[str]) -> None:
        """Take one pin() of each back."""
        for name in segments:
            self._pins[name] -= 1
            if not self._pins[name]:
                del self._pins[name]

    def victims(self, excess_bytes: int, current: WeightsId) -> list[str]:
        """Segments to evict, in order, to be rid of `excess_bytes`; fewer where pins forbid it.

        They stay known until forget_segment(). `current` are the weights in use.
        """
        if excess_bytes <= 0:
            return []
        lineage = self._trace()
        uses = [self._use(segment, lineage.get(segment.ordinal)) for segment in self._segments.values()]
        return choose_victims(uses, excess_bytes, current)

    def forget_segment(self, name: str) -> int:
        """The segment is gone, and so are its blocks; return how many those were."""
        segment = self._by_name.pop(name, None)
        if segment is None:
            return 0
        self.num_losses += 1
        table = self._tables.get(segment.weights_id, {})
        for record, key in enumerate(segment.all_keys()):
            if not segment.dead[record]:
                del table[key]
        del self._segments[segment.ordinal]
        self.stored_bytes -= segment.nbytes
        self._num_orphans = None
        return segment.num_live

    def drop_weights(self, weights_id: WeightsId) -> int:
        """Forget every block of `weights_id`, not its segments; return how many."""
        table = self._tables.pop(weights_id, {})
        self.num_losses += 1
        self._roots.pop(weights_id, None)
        self.num_pending -= _num_pending(table)
        for segment in self._segments.values():
            if segment.weights_id == weights_id:
                segment.clear()
        self._num_orphans = None
        return len(table)

    def drop_weights_except(self, *weights_ids: WeightsId) -> int:
        """Forget every block of any other weights, not their segments; return how many."""
        others = [known for known in self._tables if known not in weights_ids]
        return sum(self.drop_weights(other) for other in others)

    def check(self) -> None:
        """Raise AssertionError unless tables, segments and counts agree."""
        keys = set[BlockKey]().union(*self._tables.values())
        assert len(keys) == len(self), f"{len(self) - len(keys)} keys under two weights ids"
        assert self.num_pending == sum(map(_num_pending, self._tables.values())), self.num_pending
        assert self.stored_bytes == sum(segment.nbytes for segment in self._segments.values())
        assert self._by_name == {segment.name: segment for segment in self._segments.values()}
        assert all(count > 0 for count in self._pins.values()), self._pins
        live = 0
        for ordinal, segment in self._segments.items():
            assert (segment.ordinal, segment.last_use <= self._tick) == (ordinal, True), segment.name
            assert segment.num_live == segment.dead.count(0), segment.name
            table = self._tables.get(segment.weights_id, {})
            for record, key in enumerate(segment.all_keys()):
                found = table.get(key) == self._entry(segment, record)
                assert found != bool(segment.dead[record]), (segment.name, record)
            live += segment.num_live
        assert live + self.num_pending == len(self), "a table names a record that is not there"

    def _trace(self) -> dict[int, SegmentLineage]:
        """The lineage of every segment that has records; counts the orphans."""
        by_weights: dict[WeightsId, list[IndexedSegment]] = {}
        for segment in self._segments.values():
            if len(segment):
                by_weights.setdefault(segment.weights_id, []).append(segment)
        lineage: dict[int, SegmentLineage] = {}
        for weights_id, segments in by_weights.items():
            table = self._tables[weights_id]
            lineage |= trace(segments, partial(self._stands, table=table, weights_id=weights_id))
        self._num_orphans = sum(traced.num_orphans for traced in lineage.values())
        return lineage

    def _stands(self, parent: BlockKey, table: _Table, weights_id: WeightsId) -> bool:
        """May a block whose parent this is be reached, as far as the parent goes?

        A start of contexts is told from a block that is gone by what recovery and matches taught; as long
        as they taught none, every parent that is not stored is taken for one.
        """
        roots = self._roots.get(weights_id)
        return parent in table or not roots or parent in roots

    def _stored(self, keys: tuple[BlockKey, ...], entries: npt.NDArray[np.int64], tick: int) -> IndexedBlocks:
        """The stored blocks of a context whose entries these are; their segments are read now."""
        if not keys:
            return NO_BLOCKS
        ordinals, records = entries >> _RECORD_BITS, entries & _RECORD_MASK
        numbers: dict[int, int] = {}
        segment_of = np.zeros(len(entries), np.uint16)
        offsets, checksums = np.zeros(len(entries), np.uint64), np.zeros(len(entries), np.uint32)
        bounds = [0, *(np.flatnonzero(np.diff(ordinals)) + 1).tolist(), len(entries)]
        for start, end in pairwise(bounds):
            ordinal = int(ordinals[start])
            segment = self._segments[ordinal]
            segment.last_use = tick
            segment_of[start:end] = numbers.setdefault(ordinal, len(numbers))
            offsets[start:end], checksums[start:end] = segment.places(records[start:end])
        segments = [self._segments[ordinal] for ordinal in numbers]
        columns = tuple(SegmentColumn(segment.name, segment.record_bytes) for segment in segments)
        return IndexedBlocks(keys, columns, segment_of, offsets, checksums)

    def _learn_root(self, first: int) -> None:
        """The stored block `first` begins a context, so its parent is a chain root."""
        segment = self._segments[first >> _RECORD_BITS]
        roots = self._roots.setdefault(segment.weights_id, set())
        root = segment.parent(first & _RECORD_MASK)
        if root not in roots:
            roots.add(root)
            self._num_orphans = None

    def _use(self, segment: IndexedSegment, lineage: SegmentLineage | None) -> SegmentUse:
        parents = [self._segments[ordinal] for ordinal in lineage.continues] if lineage else []
        return SegmentUse(
            name=segment.name,
            weights_id=segment.weights_id,
            sequence=segment.sequence,
            nbytes=segment.nbytes,
            created_s=segment.created_s,
            last_use=segment.last_use,
            orphaned=lineage is not None and lineage.num_orphans == segment.num_live,
            pinned=segment.name in self._pins,
            continues=tuple(parent.name for parent in parents if parent.writer_id == segment.writer_id),
        )

    def _segment(self, name: str, weights_id: WeightsId) -> IndexedSegment:
        """The segment of that name, now known; a segment is of one weights id."""
        segment = self._by_name.get(name)
        if segment is None:
            segment = IndexedSegment(name, weights_id, self._next_ordinal, self._tick)
            self._next_ordinal += 1
            self._by_name[name] = self._segments[segment.ordinal] = segment
        assert segment.weights_id == weights_id, (name, segment.weights_id, weights_id)
        return segment

    def _location(self, entry: int) -> BlockLocation:
        return self._segments[entry >> _RECORD_BITS].location(entry & _RECORD_MASK)

    def _kill(self, entry: int) -> None:
        self.num_losses += 1
        self._segments[entry >> _RECORD_BITS].kill(entry & _RECORD_MASK)

    def _entry(self, segment: IndexedSegment, record: int) -> int:
        return (segment.ordinal << _RECORD_BITS) + record

    def _next_tick(self) -> int:
        self._tick += 1
        return self._tick

    def _table(self, weights_id: WeightsId) -> _Table:
        return self._tables.setdefault(weights_id, {})

    def _table_of(self, key: BlockKey) -> _Table | None:
        """The table that knows `key`. A key names its weights, so there is at most one."""
        for table in self._tables.values():
            if key in table:
                return table
        return None


def _num_pending(table: _Table) -> int:
    return sum(entry < 0 for entry in table.values())

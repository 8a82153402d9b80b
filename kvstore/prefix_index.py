"""Which blocks are stored where, and how long a context's known prefix is.

Pure: a table in memory, no I/O, no clock. It knows keys and opaque locations; who reads a block and
when waiting for a pending one is worth it is decided elsewhere.

A block is *stored* once its location is announced. It is *pending* while a persist of it is on its
way; several engines may persist one block at once, so persists are counted. There is one table per
weights id, because weights go as a whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvstore.keys import BlockKey, WeightsId
from kvstore.store import BlockLocation

# A table's value is the location of a stored block, or the number of persists of a pending one.
_Table = dict[BlockKey, BlockLocation | int]


@dataclass(frozen=True, slots=True)
class IndexedBlock:
    """A stored block."""

    key: BlockKey
    location: BlockLocation


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest prefix of a context's blocks that are all stored or pending."""

    stored: tuple[IndexedBlock, ...]
    """The prefix's stored blocks, in order."""
    pending: tuple[BlockKey, ...]
    """The prefix's pending blocks, in order; they may lie between stored ones."""

    @property
    def num_blocks(self) -> int:
        return len(self.stored) + len(self.pending)


class PrefixIndex:
    """Locations of blocks by key. One thread at a time."""

    def __init__(self) -> None:
        self._tables: dict[WeightsId, _Table] = {}
        self._nbytes: dict[int, int] = {}
        self.num_pending = 0

    def __len__(self) -> int:
        """Stored and pending blocks."""
        return sum(len(table) for table in self._tables.values())

    def is_pending(self, key: BlockKey) -> bool:
        """Whether a persist of the block is on its way and the block is not stored yet."""
        table = self._table_of(key)
        return table is not None and isinstance(table[key], int)

    def announce(self, key: BlockKey, location: BlockLocation, weights_id: WeightsId) -> None:
        """The block is stored at `location`; the newest announcement holds."""
        table = self._table(weights_id)
        self.num_pending -= isinstance(table.get(key), int)
        table[key] = self._compact(location)

    def expect(self, keys: Iterable[BlockKey], weights_id: WeightsId) -> None:
        """A persist of each of `keys` is on its way; it ends with announce() or cancel()."""
        table = self._table(weights_id)
        for key in keys:
            entry = table.get(key, 0)
            if isinstance(entry, int):
                table[key] = entry + 1
                self.num_pending += entry == 0

    def cancel(self, keys: Iterable[BlockKey]) -> None:
        """One persist of each of `keys` failed; the last one's failure ends the waiting."""
        for key in keys:
            table = self._table_of(key)
            entry = None if table is None else table.get(key)
            if table is None or not isinstance(entry, int):
                continue
            if entry > 1:
                table[key] = entry - 1
            else:
                del table[key]
                self.num_pending -= 1

    def discard(self, key: BlockKey) -> bool:
        """Forget a stored block (it was lost or corrupt). A pending one stays: see cancel()."""
        table = self._table_of(key)
        if table is None or isinstance(table[key], int):
            return False
        del table[key]
        return True

    def match(self, keys: Sequence[BlockKey]) -> PrefixMatch:
        """The longest prefix of `keys`, one context's chain, whose blocks are all known."""
        stored: list[IndexedBlock] = []
        pending: list[BlockKey] = []
        table = (self._table_of(keys[0]) if keys else None) or {}
        for key in keys:
            entry = table.get(key)
            if entry is None:
                break
            if isinstance(entry, int):
                pending.append(key)
            else:
                stored.append(IndexedBlock(key, entry))
        return PrefixMatch(tuple(stored), tuple(pending))

    def drop_weights(self, weights_id: WeightsId) -> int:
        """Forget every block of `weights_id`; return how many."""
        table = self._tables.pop(weights_id, {})
        self.num_pending -= _num_pending(table)
        return len(table)

    def drop_weights_except(self, weights_id: WeightsId) -> int:
        """Forget every block of any other weights; return how many."""
        others = [known for known in self._tables if known != weights_id]
        return sum(self.drop_weights(other) for other in others)

    def check(self) -> None:
        """Raise AssertionError unless each key is known under one weights id, and counts are right."""
        keys = set[BlockKey]().union(*self._tables.values())
        assert len(keys) == len(self), f"{len(self) - len(keys)} keys under two weights ids"
        assert self.num_pending == sum(map(_num_pending, self._tables.values())), self.num_pending
        assert not any(0 in table.values() for table in self._tables.values()), "nobody persists it"

    def _table(self, weights_id: WeightsId) -> _Table:
        return self._tables.setdefault(weights_id, {})

    def _table_of(self, key: BlockKey) -> _Table | None:
        """The table that knows `key`. A key names its weights, so there is at most one."""
        return next((table for table in self._tables.values() if key in table), None)

    def _compact(self, location: BlockLocation) -> BlockLocation:
        """The same location, sharing what blocks have in common: it may have come by pickle."""
        nbytes = self._nbytes.setdefault(location.nbytes, location.nbytes)
        segment = sys.intern(location.segment)
        return BlockLocation(segment, location.offset, nbytes, location.checksum)


def _num_pending(table: _Table) -> int:
    return sum(isinstance(entry, int) for entry in table.values())

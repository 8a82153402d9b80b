"""Which slots of one node's staging memory keep blocks that were read lately. Pure accounting.

    offer --> kept, idle <--use/release--> kept, in use
              |  give_up: the least recently used first
              `--> no longer the tier's

Prompts always win: an idle slot is given up whenever it is asked for. A slot in use stays until its last
user has released it, even if its block has been dropped and is found no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from kvstore.keys import BlockKey


@dataclass(slots=True)
class _Kept:
    slot: int
    num_users: int = 0


class DramTier:
    """Blocks by key, each in one slot. Slots it holds are the tier's own until it hands them back."""

    def __init__(self, max_slots: int) -> None:
        self.max_slots = max_slots
        self._kept: OrderedDict[BlockKey, _Kept] = OrderedDict()
        """Least recently used first."""
        self._dropped: dict[int, _Kept] = {}
        """Slots still in use whose block is found no more."""
        self._num_idle = 0

    def __len__(self) -> int:
        """Slots held."""
        return len(self._kept) + len(self._dropped)

    @property
    def slots(self) -> set[int]:
        """Every slot held."""
        return {kept.slot for kept in self._kept.values()} | set(self._dropped)

    @property
    def num_users(self) -> int:
        """Uses that were not released yet, over all slots."""
        return sum(kept.num_users for kept in (*self._kept.values(), *self._dropped.values()))

    def find(self, key: BlockKey) -> int | None:
        """The slot that holds the block, or None. Not a use."""
        kept = self._kept.get(key)
        return None if kept is None else kept.slot

    def num_idle(self, but: Iterable[BlockKey] = ()) -> int:
        """Slots that give_up() could hand over, those of `but`, each named once, left aside."""
        left_aside = (self._kept.get(key) for key in but)
        return self._num_idle - sum(kept is not None and not kept.num_users for kept in left_aside)

    def use(self, key: BlockKey) -> int:
        """One more user of a kept block; returns its slot. Ends with release()."""
        kept = self._kept[key]
        self._num_idle -= not kept.num_users
        kept.num_users += 1
        self._kept.move_to_end(key)
        return kept.slot

    def release(self, key: BlockKey, slot: int) -> list[int]:
        """A use of `key` in `slot` is over; returns the slot if that was the last of a dropped block."""
        kept = self._kept.get(key)
        if kept is not None and kept.slot == slot:
            assert kept.num_users > 0, slot
            kept.num_users -= 1
            self._num_idle += not kept.num_users
            self._kept.move_to_end(key)
            return []
        dropped = self._dropped[slot]
        dropped.num_users -= 1
        if dropped.num_users:
            return []
        del self._dropped[slot]
        return [slot]

    def offer(self, key: BlockKey, slot: int) -> list[int]:
        """`slot` holds the block and its user is done with it; returns the slots that are free for it.

        That is the slot itself where the block is kept already or nothing idle can make room.
        """
        if key in self._kept:
            return [slot]
        given_up = self.give_up(len(self) + 1 - self.max_slots)
        if len(self) >= self.max_slots:
            return [*given_up, slot]
        self._kept[key] = _Kept(slot)
        self._num_idle += 1
        return given_up

    def give_up(self, num_slots: int) -> list[int]:
        """Hand over up to `num_slots` idle slots, the least recently used first."""
        idle = (key for key, kept in self._kept.items() if not kept.num_users)
        given_up = [self._kept.pop(key).slot for key in list(islice(idle, max(0, num_slots)))]
        self._num_idle -= len(given_up)
        return given_up

    def drop(self, key: BlockKey) -> list[int]:
        """The block is found no more; returns its slot unless somebody still uses it."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return []
        if kept.num_users:
            self._dropped[kept.slot] = kept
            return []
        self._num_idle -= 1
        return [kept.slot]

    def clear(self) -> list[int]:
        """Every block is found no more; returns the slots nobody uses."""
        return [slot for key in list(self._kept) for slot in self.drop(key)]

    def check(self) -> None:
        """Raise AssertionError unless the counts agree and no slot is held twice."""
        assert self._num_idle == sum(not kept.num_users for kept in self._kept.values()), self._num_idle
        assert all(kept.num_users for kept in self._dropped.values()), "a dropped block without a user"
        assert len(self.slots) == len(self), "a slot is held twice"

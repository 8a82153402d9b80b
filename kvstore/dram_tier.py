"""Which slots of one node's staging memory keep blocks that were read lately. Pure accounting.

    offer --> kept, idle <--use/release--> kept, in use
              |  give_up: the least recently used first
              `--> no longer the tier's

Prompts always win: an idle slot is given up whenever it is asked for. A slot in use stays until its last
user has released it, even if its block has been dropped and is found no more. Blocks that somebody holds, as
he will want them, are given up last, and never to keep other blocks instead.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from kvstore.keys import BlockKey


@dataclass(slots=True)
class _Kept:
    slot: int
    num_users: int = 0


class DramTier:
    """Blocks by key, each in one slot. Slots it holds are the tier's own until it hands them back."""

    def __init__(self, max_slots: int) -> None:
        self.max_slots = max_slots
        self._kept: dict[BlockKey, _Kept] = {}
        self._dropped: dict[int, _Kept] = {}
        """Slots still in use whose block is found no more."""
        self._holders: Counter[BlockKey] = Counter()
        """By block, kept or not."""
        self._idle: OrderedDict[BlockKey, None] = OrderedDict()
        """Least recently used first."""
        self._idle_held: OrderedDict[BlockKey, None] = OrderedDict()

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
        left_aside = sum(key in self._idle or key in self._idle_held for key in but)
        return len(self._idle) + len(self._idle_held) - left_aside

    @property
    def num_room(self) -> int:
        """More blocks that could be kept."""
        return self.max_slots - len(self) + len(self._idle)

    @property
    def num_held(self) -> int:
        """Blocks that somebody holds, kept or not."""
        return len(self._holders)

    def hold(self, keys: Iterable[BlockKey]) -> None:
        """Somebody will want these blocks, whether they are kept by now or not. Ends with let_go()."""
        for key in keys:
            self._holders[key] += 1
            if key in self._idle:
                del self._idle[key]
                self._idle_held[key] = None

    def let_go(self, keys: Iterable[BlockKey]) -> None:
        """Whoever held these blocks wants them no more, or uses them."""
        for key in keys:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                if key in self._idle_held:
                    del self._idle_held[key]
                    self._idle[key] = None

    def use(self, key: BlockKey) -> int:
        """One more user of a kept block; returns its slot. Ends with release()."""
        kept = self._kept[key]
        self._idle.pop(key, None)
        self._idle_held.pop(key, None)
        kept.num_users += 1
        return kept.slot

    def release(self, key: BlockKey, slot: int) -> list[int]:
        """A use of `key` in `slot` is over; returns the slot if that was the last of a dropped block."""
        kept = self._kept.get(key)
        if kept is not None and kept.slot == slot:
            assert kept.num_users > 0, slot
            kept.num_users -= 1
            if not kept.num_users:
                self._idle_of(key)[key] = None
            return []
        dropped = self._dropped[slot]
        dropped.num_users -= 1
        if dropped.num_users:
            return []
        del self._dropped[slot]
        return [slot]

    def offer(self, key: BlockKey, slot: int) -> list[int]:
        """`slot` holds the block and its user is done with it; returns the slots that are free for it.

        That is the slot itself where the block is kept already or nothing idle and not held can make room.
        """
        if key in self._kept:
            return [slot]
        given_up = self.give_up(len(self) + 1 - self.max_slots, held_too=False)
        if len(self) >= self.max_slots:
            return [*given_up, slot]
        self._kept[key] = _Kept(slot)
        self._idle_of(key)[key] = None
        return given_up

    def give_up(self, num_slots: int, *, held_too: bool = True) -> list[int]:
        """Hand over up to `num_slots` idle slots, the least recently used first, held ones last if at all."""
        given_up: list[int] = []
        for idle in (self._idle, self._idle_held) if held_too else (self._idle,):
            while idle and len(given_up) < num_slots:
                key, _ = idle.popitem(last=False)
                given_up.append(self._kept.pop(key).slot)
        return given_up

    def drop(self, key: BlockKey) -> list[int]:
        """The block is found no more; returns its slot unless somebody still uses it."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return []
        if kept.num_users:
            self._dropped[kept.slot] = kept
            return []
        del self._idle_of(key)[key]
        return [kept.slot]

    def clear(self) -> list[int]:
        """Every block is found no more; returns the slots nobody uses."""
        return [slot for key in list(self._kept) for slot in self.drop(key)]

    def check(self) -> None:
        """Raise AssertionError unless the counts agree and no slot is held twice."""
        idle = {key for key, kept in self._kept.items() if not kept.num_users}
        held = idle.intersection(self._holders)
        assert (set(self._idle), set(self._idle_held)) == (idle - held, held), "an idle slot is misplaced"
        assert all(num > 0 for num in self._holders.values()), self._holders
        assert all(kept.num_users for kept in self._dropped.values()), "a dropped block without a user"
        assert len(self.slots) == len(self), "a slot is held twice"

    def _idle_of(self, key: BlockKey) -> OrderedDict[BlockKey, None]:
        """Where the block stands while nobody uses it."""
        return self._idle_held if key in self._holders else self._idle

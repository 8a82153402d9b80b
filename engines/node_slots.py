"""The slots of one node's staging memory, and what each is there for at any time.

Pure bookkeeping. A slot is exactly one of

    free | reserved (an engine's own) | lent (one turn's) | in DRAM (keeps a block) | being read ahead into
         | quarantined

A slot in DRAM may be used by any number of turns at once; prompts that need room get it if it is idle. A
slot whose read is late is quarantined until the node says that the read has settled; one of a turn that
broke, until nobody works for that turn any more. Which turn a slot is lent to stands in engines.loan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import cast

from engines.types import RequestId, SlotId
from kvstore.dram_tier import DramTier
from kvstore.keys import BlockKey
from kvstore.slots import SlotPool


class NodeSlots:
    """One per node."""

    def __init__(self, num_slots: int, max_dram_slots: int) -> None:
        self.pool = SlotPool(num_slots)
        self.dram = DramTier(max_dram_slots)
        self.num_reserved = 0
        self._late: set[SlotId] = set()
        """Quarantined until their reads settle."""
        self._doubted: dict[SlotId, set[RequestId]] = {}
        """Slots that somebody may still touch for these turns: quarantined, or in DRAM and used by others."""
        self._ahead: set[SlotId] = set()
        """Blocks are being read into these that no turn has asked for yet."""
        self._ahead_settled: set[SlotId] = set()
        """Of these, those whose late reads have settled before anybody said that they were late."""

    @property
    def num_lendable(self) -> int:
        """Slots that prompts could have if nobody had any."""
        return self.pool.num_slots - self.num_reserved

    @property
    def num_late(self) -> int:
        """Slots that wait for a late read to settle."""
        return len(self._late)

    @property
    def is_mostly_quarantined(self) -> bool:
        """Whether over half of what it may lend is set aside."""
        return 2 * self.pool.num_quarantined > self.num_lendable

    # -- for prompts ---------------------------------------------------------------------------------

    def num_takeable(self, but: Iterable[BlockKey] = ()) -> int:
        """Slots that a prompt could have, the blocks of `but` left in DRAM."""
        return self.pool.num_free + self.dram.num_idle(but)

    def take(self, num_slots: int) -> tuple[SlotId, ...]:
        """So many slots, as many of them from DRAM as are not free."""
        self.pool.give_back(self.dram.give_up(num_slots - self.pool.num_free))
        return cast(tuple[SlotId, ...], tuple(self.pool.take(num_slots)))

    def reserve(self, num_slots: int) -> tuple[SlotId, ...]:
        """Slots that are somebody's own from now on, never lent."""
        self.num_reserved += num_slots
        return self.take(num_slots)

    # -- late and unsafe slots -----------------------------------------------------------------------

    def give_back_unless_late(self, slots: Set[SlotId], late: Set[SlotId]) -> None:
        """Free `slots`, those that are `late` when their reads have settled."""
        still_late = slots & late
        self.pool.quarantine(still_late)
        self._late |= still_late
        self.pool.give_back(slots - still_late)

    def settled(self, slots: Iterable[SlotId]) -> None:
        """No late read writes into these any more."""
        free = self._late.intersection(slots)
        self._late -= free
        self.pool.release_quarantined(free)
        self._ahead_settled |= self._ahead.intersection(slots)

    def doubt(self, request_id: RequestId, slots: Iterable[SlotId]) -> None:
        """Somebody may still touch these slots of the turn: nobody else gets them."""
        for slot in slots:
            self.pool.quarantine([slot])
            self._doubted[slot] = {request_id}

    def doubt_kept(self, request_id: RequestId, key: BlockKey, slot: SlotId) -> None:
        """The same of a slot in DRAM that the turn uses: its block is found no more."""
        self._doubted.setdefault(slot, set()).add(request_id)
        self.drop(key, slot)

    def trust(self, request_id: RequestId) -> None:
        """Nobody touches slots for this turn any more."""
        trusted = [slot for slot, turns in self._doubted.items() if turns == {request_id}]
        for turns in self._doubted.values():
            turns.discard(request_id)
        for slot in trusted:
            del self._doubted[slot]
        self.pool.release_quarantined(set(trusted) - self.dram.slots)

    # -- blocks that are kept ------------------------------------------------------------------------

    def keep(self, key: BlockKey, slot: SlotId) -> None:
        """Keep the block in its slot, if there is room for it."""
        self._leave_dram(self.dram.offer(key, slot))

    def drop(self, key: BlockKey, slot: SlotId) -> None:
        """The block is not what was kept in this slot; who uses it now will find out."""
        if self.dram.find(key) == slot:
            self._leave_dram(self.dram.drop(key))

    def release(self, key: BlockKey, slot: SlotId) -> None:
        """One turn uses this kept block no more."""
        self._leave_dram(self.dram.release(key, slot))

    def empty_dram(self) -> None:
        """No block that is kept will be asked for again."""
        self._leave_dram(self.dram.clear())

    # -- reads ahead of turns ------------------------------------------------------------------------

    @property
    def num_holdable(self) -> int:
        """Blocks that could be held in DRAM beside those that are."""
        return max(self.dram.max_slots - self.dram.num_held, 0)

    def take_ahead(self, num_slots: int) -> tuple[SlotId, ...]:
        """Up to `num_slots` slots to read blocks into that can be kept; `end_ahead` gives them back."""
        num_slots = max(min(num_slots, self.dram.num_room - len(self._ahead)), 0)
        too_many = len(self.dram) + len(self._ahead) + num_slots - self.dram.max_slots
        lacking = num_slots - self.pool.num_free
        self._leave_dram(self.dram.give_up(max(too_many, lacking), held_too=False))
        slots = tuple(map(SlotId, self.pool.take(min(num_slots, self.pool.num_free))))
        self._ahead.update(slots)
        return slots

    def end_ahead(
        self, slots: Iterable[SlotId], right: Sequence[tuple[BlockKey, SlotId]], late: Set[SlotId]
    ) -> None:
        """The reads into `slots` are over: keep what is `right`, free the others once they are not `late`."""
        ended = self._ahead.intersection(slots)
        late = late - self._ahead_settled
        self._ahead -= ended
        self._ahead_settled -= ended
        self.give_back_unless_late(ended - {slot for _, slot in right}, late)
        for key, slot in reversed(right):
            if slot in ended:
                self.keep(key, slot)

    def quarantine_ahead(self, slots: Iterable[SlotId]) -> None:
        """Nobody knows whether the node still writes into these."""
        ended = self._ahead.intersection(slots)
        self._ahead -= ended
        self.pool.quarantine(ended)

    # -- the whole -----------------------------------------------------------------------------------

    def check(self, lent: Sequence[SlotId], num_users: int) -> None:
        """Raise AssertionError unless every slot is in one state; blocks in DRAM have so many users."""
        self.pool.check()
        self.dram.check()
        kept = self.dram.slots
        assert len(set(lent)) == len(lent), "a slot is lent twice"
        assert not kept.intersection(lent), "a slot in DRAM is lent"
        assert not self._ahead.intersection(lent, kept), "a slot is lent and read ahead into"
        used = self.num_reserved + len(lent) + len(kept) + len(self._ahead)
        assert used + self.pool.num_free + self.pool.num_quarantined == self.pool.num_slots
        assert self.dram.num_users == num_users

    def _leave_dram(self, slots: Iterable[int]) -> None:
        for slot in map(SlotId, slots):
            if slot in self._doubted:
                self.pool.quarantine([slot])
            else:
                self.pool.give_back([slot])

"""Which staging slots of one vLLM server are free, in use, or keep a block that was used lately.

Pure accounting over kvstore.slots and kvstore.dram_tier, under one lock: vLLM's scheduler takes slots to save
into in its own thread, everything else happens on the block service's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvstore.dram_tier import DramTier
from kvstore.keys import BlockKey
from kvstore.slots import SlotPool


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A slot that somebody uses, for a block."""

    key: BlockKey
    slot: int
    kept: bool
    """The block lies in it and may have other users; otherwise it is the holder's alone."""


class SlotRoom:
    """All slots of one staging memory. Thread-safe."""

    def __init__(self, num_slots: int, num_kept: int) -> None:
        """`num_kept`: most slots that keep blocks nobody uses."""
        self.num_slots = num_slots
        self._pool = SlotPool(num_slots)
        self._tier = DramTier(num_kept)
        self._late: list[tuple[int, threading.Event]] = []
        self._lock = threading.Lock()

    @property
    def num_free(self) -> int:
        """Slots nobody uses, those that keep blocks too."""
        with self._lock:
            return self._pool.num_free + self._tier.num_idle()

    def keeps(self, key: BlockKey) -> bool:
        with self._lock:
            return self._tier.find(key) is not None

    def take(self, num_slots: int) -> list[int]:
        """At most so many slots, for their taker alone; blocks that nobody uses make room."""
        with self._lock:
            self._collect_late()
            self._make_free(num_slots)
            return self._pool.take(min(num_slots, self._pool.num_free))

    def give_back(self, slots: Sequence[int]) -> None:
        """Their taker has no use for them."""
        with self._lock:
            self._pool.give_back(slots)

    def acquire(self, keys: Sequence[BlockKey]) -> list[HeldSlot] | None:
        """A slot for each block, its own where it is kept; None, and nothing held, if there are too few."""
        with self._lock:
            self._collect_late()
            slots = {key: self._tier.use(key) for key in keys if self._tier.find(key) is not None}
            others = [key for key in keys if key not in slots]
            self._make_free(len(others))
            if self._pool.num_free < len(others):
                for key, slot in slots.items():
                    self._pool.give_back(self._tier.release(key, slot))
                return None
            taken = dict(zip(others, self._pool.take(len(others)), strict=True))
            return [HeldSlot(key, slots.get(key, taken.get(key, -1)), key in slots) for key in keys]

    def keep(self, held: HeldSlot) -> HeldSlot:
        """The block lies in the slot now: let others use it too, if it may be kept."""
        with self._lock:
            given_up = self._tier.offer(held.key, held.slot)
            if held.slot in given_up:
                given_up.remove(held.slot)
                self._pool.give_back(given_up)
                return held
            self._pool.give_back(given_up)
            self._tier.use(held.key)
            return HeldSlot(held.key, held.slot, kept=True)

    def let_go(self, held: Iterable[HeldSlot]) -> None:
        """Their holder uses them no more."""
        with self._lock:
            for each in held:
                freed = self._tier.release(each.key, each.slot) if each.kept else [each.slot]
                self._pool.give_back(freed)

    def quarantine(self, slot: int, settled: threading.Event) -> None:
        """A taken slot may still be written to, until `settled`."""
        with self._lock:
            self._pool.quarantine([slot])
            self._late.append((slot, settled))

    def drop(self, key: BlockKey) -> None:
        """The block is found no more."""
        with self._lock:
            self._pool.give_back(self._tier.drop(key))

    def clear(self) -> None:
        """No block is found any more."""
        with self._lock:
            self._pool.give_back(self._tier.clear())

    def check(self) -> None:
        """Raise AssertionError unless the accounts agree."""
        with self._lock:
            self._pool.check()
            self._tier.check()

    def _make_free(self, num_slots: int) -> None:
        missing = num_slots - self._pool.num_free
        if missing > 0:
            self._pool.give_back(self._tier.give_up(missing))

    def _collect_late(self) -> None:
        over = [slot for slot, settled in self._late if settled.is_set()]
        if over:
            self._late = [late for late in self._late if late[0] not in over]
            self._pool.release_quarantined(over)

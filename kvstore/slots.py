"""Which slots of one staging memory are in use. Pure accounting: it touches no memory.

    free --take--> taken --give_back--> free
                   taken --quarantine--> quarantined --release_quarantined--> free

A slot with an unresolved remote write or read is quarantined: nobody gets it until its writer is
known to be dead or done. Whoever shares a pool between threads holds a lock.
"""

from __future__ import annotations

from collections.abc import Collection

from kvstore.errors import StagingError


class SlotPool:
    """Every slot is in exactly one of three states: free, taken, quarantined."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(reversed(range(num_slots)))
        self._taken: set[int] = set()
        self._quarantined: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_quarantined(self) -> int:
        return len(self._quarantined)

    def take(self, num_slots: int) -> list[int]:
        """Take `num_slots` free slots, or none and raise StagingError."""
        assert num_slots >= 0, num_slots
        if num_slots > len(self._free):
            raise StagingError(
                f"{num_slots} staging slots wanted, {len(self._free)} of {self.num_slots} free "
                f"({len(self._quarantined)} quarantined)"
            )
        slots = self._free[-num_slots:][::-1] if num_slots else []
        del self._free[len(self._free) - num_slots :]
        self._taken.update(slots)
        return slots

    def give_back(self, slots: Collection[int]) -> None:
        """Free taken slots; nobody reads or writes them any more."""
        self._leave(self._taken, slots)
        self._free.extend(slots)

    def quarantine(self, slots: Collection[int]) -> None:
        """Set taken slots aside: somebody may still write to them."""
        self._leave(self._taken, slots)
        self._quarantined.update(slots)

    def release_quarantined(self, slots: Collection[int]) -> None:
        """Free quarantined slots: their writers are known to be dead or done."""
        self._leave(self._quarantined, slots)
        self._free.extend(slots)

    def check(self) -> None:
        """Raise AssertionError unless the three states cover every slot once."""
        states = [*self._free, *self._taken, *self._quarantined]
        assert sorted(states) == list(range(self.num_slots)), (len(states), self.num_slots)

    def _leave(self, state: set[int], slots: Collection[int]) -> None:
        """All of `slots`, each named once, leave `state`; or AssertionError and nothing changes."""
        leaving = set(slots)
        assert len(leaving) == len(slots), f"a slot is named twice in {sorted(slots)}"
        assert leaving <= state, f"not theirs to give: slots {sorted(leaving - state)}"
        state -= leaving

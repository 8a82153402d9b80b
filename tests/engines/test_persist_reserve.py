"""How many slots a decode engine persists from, and how many blocks it writes together."""

from __future__ import annotations

from engines.persist_reserve import num_reserve_slots, reserve_of
from engines.types import SlotId

MIB, SMALL = 1 << 20, 57 << 10


def reserve(*, block_bytes: int = SMALL, num_slots: int = 9000, num_engines: int = 1, least: int = 4) -> int:
    return num_reserve_slots(
        least=least,
        pack_bytes=MIB,
        block_bytes=block_bytes,
        num_slots=num_slots,
        num_engines=num_engines,
    )


def pack_of(num_slots: int, block_bytes: int = SMALL) -> int:
    slots = [SlotId(slot) for slot in range(num_slots)]
    kept = reserve_of(slots, pack_bytes=MIB, block_bytes=block_bytes)
    assert kept.slots == tuple(slots)
    return kept.pack_blocks


def test_small_blocks_have_room_for_two_packs_of_at_least_the_bytes_asked_for() -> None:
    assert reserve() == 2 * 18
    assert pack_of(reserve()) == 18
    assert 17 * SMALL < MIB <= 18 * SMALL


def test_blocks_as_large_as_a_pack_are_written_one_by_one_from_the_slots_asked_for() -> None:
    assert reserve(block_bytes=4 * MIB) == 4
    assert pack_of(4, block_bytes=4 * MIB) == 1


def test_in_little_memory_packs_are_smaller_and_prompts_keep_most_of_it() -> None:
    assert reserve(num_slots=160) == 20
    assert reserve(num_slots=160, num_engines=2) == 10
    assert pack_of(10) == 5


def test_what_is_asked_for_is_kept_however_little_there_is() -> None:
    assert reserve(num_slots=8, least=3) == 3
    assert pack_of(3) == 1
    assert pack_of(1) == 1

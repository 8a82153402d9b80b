"""Portions hold the same moves in the same order, and each fits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore.transfer_portions import portions
from kvstore.transport import TransferList

MOST_BYTES = 10


def byte_by_byte(lists):
    """Where each byte is here and there, in the order of the moves."""
    return [
        (id(moves.memory), int(here) + i, int(there) + i)
        for moves in lists
        for here, there, size in zip(moves.local_offsets, moves.remote_offsets, moves.sizes, strict=True)
        for i in range(size)
    ]


@given(st.lists(st.lists(st.integers(0, 35), max_size=12), max_size=5))
def test_every_byte_moves_once_and_in_order_and_no_portion_is_too_large(sizes_of_lists):
    lists = []
    for sizes in sizes_of_lists:
        local = np.cumsum([0, *sizes[:-1]]) if sizes else np.zeros(0, np.int64)
        memory = np.zeros(sum(sizes), np.uint8)
        lists.append(TransferList(memory, local, local[::-1] * 3, np.array(sizes, np.int64)))
    made = list(portions(lists, MOST_BYTES))
    assert byte_by_byte([moves for portion in made for moves in portion]) == byte_by_byte(lists)
    for portion in made:
        assert 0 < sum(moves.nbytes for moves in portion) <= MOST_BYTES
        assert all(moves.sizes.min() > 0 for moves in portion)


def test_what_fits_together_is_one_portion():
    memory = np.zeros(MOST_BYTES, np.uint8)
    lists = [TransferList.equal(memory, np.array([0, 2]), np.array([4, 9]), 2) for _ in "ab"]
    assert [len(portion) for portion in portions(lists, MOST_BYTES)] == [2]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.block_pool import BlockPool
from engines.types import BlockId


def test_taking_more_blocks_than_are_free_takes_none() -> None:
    pool = BlockPool(4)
    assert pool.take(3) is not None
    assert pool.take(2) is None
    assert pool.num_free == 1


def test_a_block_given_back_twice_is_an_error() -> None:
    pool = BlockPool(4)
    taken = pool.take(1)
    assert taken is not None
    pool.give_back(taken)
    with pytest.raises(AssertionError, match="twice"):
        pool.give_back(taken)


@given(st.lists(st.integers(-6, 6), max_size=40))
def test_every_block_has_one_owner_at_a_time(moves: list[int]) -> None:
    # A positive move takes that many blocks, a negative one gives that many back, oldest first.
    pool, held = BlockPool(16), list[BlockId]()
    for move in moves:
        if move >= 0:
            taken = pool.take(move)
            assert (taken is None) == (move > 16 - len(held))
            held += taken or []
        else:
            returning, held = held[:-move], held[-move:]
            pool.give_back(returning)
        pool.check()
        assert len(set(held)) == len(held)
        assert pool.num_free == 16 - len(held)

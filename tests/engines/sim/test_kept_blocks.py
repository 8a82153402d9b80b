from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.sim.kept_blocks import KeptBlocks


def test_the_context_used_longest_ago_goes_first_and_of_it_the_end() -> None:
    kept = KeptBlocks(10)
    kept.keep(1, 6)
    kept.keep(2, 3)
    kept.keep(1, 6)
    kept.keep(3, 3)
    assert [kept.of(agent) for agent in (1, 2, 3)] == [6, 1, 3]


def test_a_context_larger_than_the_memory_keeps_its_beginning() -> None:
    kept = KeptBlocks(4)
    kept.keep(1, 9)
    assert kept.of(1) == kept.num_blocks == 4


def test_what_an_agent_drops_is_kept_no_more() -> None:
    kept = KeptBlocks(10)
    kept.keep(1, 6)
    kept.forget(1, 2)
    assert kept.of(1) == kept.num_blocks == 2
    kept.forget(1, 5)
    assert kept.of(1) == 2


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.booleans())), st.integers(0, 15))
def test_never_more_is_kept_than_there_is_room_for(calls: list[tuple[int, int, bool]], room: int) -> None:
    kept = KeptBlocks(room)
    for agent, blocks, drops in calls:
        if drops:
            kept.forget(agent, blocks)
        else:
            kept.keep(agent, blocks)
        assert kept.num_blocks == sum(map(kept.of, range(5))) <= room

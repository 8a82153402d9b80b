"""Who may have slots next: first come, first served on every node, and nobody else is held up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.slot_queue import SlotQueue
from engines.types import NodeId, RequestId

A, B, C, D = (NodeId(name) for name in "abcd")
ONE, TWO, THREE = (RequestId(name) for name in ("one", "two", "three"))


def test_a_later_turn_never_passes_one_that_needs_the_same_node() -> None:
    queue = SlotQueue()
    queue.push(ONE, (A, B))
    queue.push(TWO, (A, C))
    assert (queue.first(A), queue.first(B), queue.first(C)) == (ONE, ONE, None)
    assert queue.leave(ONE) == (A, B)
    assert (queue.first(A), queue.first(B), queue.first(C)) == (TWO, None, TWO)


def test_a_later_turn_on_other_nodes_goes_on() -> None:
    queue = SlotQueue()
    queue.push(ONE, (A, B))
    queue.push(TWO, (C, D))
    assert (queue.first(C), queue.first(D)) == (TWO, TWO)
    assert [queue.waits_for(node) for node in (A, B, C, D)] == [True] * 4


def test_a_turn_whose_engines_share_a_node_stands_in_one_line() -> None:
    queue = SlotQueue()
    queue.push(ONE, (A, A))
    assert queue.first(A) == ONE
    assert queue.leave(ONE) == (A,)
    assert not queue.waits_for(A)
    assert queue.nodes() == ()


def test_who_does_not_wait_leaves_nothing() -> None:
    queue = SlotQueue()
    assert queue.leave(ONE) == ()
    assert (queue.first(A), len(queue), ONE in queue) == (None, 0, False)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.integers(0, 2))))
def test_the_first_of_all_is_first_in_all_its_lines(turns: list[tuple[str, str, int]]) -> None:
    queue = SlotQueue()
    waiting: list[tuple[RequestId, set[NodeId]]] = []
    for number, (one, other, then) in enumerate(turns):
        nodes = {NodeId(one), NodeId(other)}
        queue.push(RequestId(str(number)), sorted(nodes))
        waiting.append((RequestId(str(number)), nodes))
        if then == 0:
            queue.leave(waiting.pop(len(waiting) // 2)[0])
        for node in (A, B, C, D):
            line = [request_id for request_id, needed in waiting if node in needed]
            first = queue.first(node)
            assert first is None or first == line[0]
        if waiting:
            request_id, needed = waiting[0]
            assert all(queue.first(node) == request_id for node in needed)
    assert len(queue) == len(waiting)

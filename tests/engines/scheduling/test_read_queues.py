"""Who counts reads between reports: the scheduler, by the decisions it makes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.read_queues import ReadQueues
from engines.types import NodeId, RequestId

A, B = NodeId("a"), NodeId("b")


def queues() -> ReadQueues:
    made = ReadQueues()
    made.add_node(A)
    made.add_node(B)
    return made


def test_a_plan_counts_at_once_and_a_report_takes_off_what_was_finished() -> None:
    reads = queues()
    reads.plan({A: 100, B: 30})
    reads.plan({A: 50})
    reads.report(A, 120)
    assert (reads.tokens(A), reads.tokens(B)) == (30, 30)


def test_a_plan_made_while_a_report_was_on_its_way_is_counted_once() -> None:
    reads = queues()
    reads.plan({A: 100})
    finished_when_sent = 60
    reads.plan({A: 40})
    reads.report(A, finished_when_sent)
    assert reads.tokens(A) == 80


def test_a_late_report_changes_nothing() -> None:
    reads = queues()
    reads.plan({A: 100})
    for total in (70, 50, 70):
        reads.report(A, total)
    assert reads.tokens(A) == 30


def test_a_promise_counts_until_the_reads_are_planned() -> None:
    reads = queues()
    reads.promise(RequestId("r"), A, 80)
    assert reads.tokens(A) == 80
    reads.keep_no_promise(RequestId("r"))
    reads.plan({A: 20, B: 60})
    reads.keep_no_promise(RequestId("r"))
    assert (reads.tokens(A), reads.tokens(B)) == (20, 60)


def test_reads_that_change_sides_change_queues() -> None:
    reads = queues()
    reads.plan({A: 50, B: 50})
    reads.plan({A: -30, B: 30})
    assert (reads.tokens(A), reads.tokens(B)) == (20, 80)


def test_a_node_that_comes_back_has_nothing_to_read() -> None:
    reads = queues()
    reads.plan({A: 50, B: 10})
    reads.promise(RequestId("r"), A, 80)
    reads.report(A, 20)
    reads.add_node(A)
    reads.keep_no_promise(RequestId("r"))
    assert (reads.tokens(A), reads.tokens(B)) == (0, 10)
    reads.plan({A: 5})
    reads.report(A, 5)
    assert reads.tokens(A) == 0
    reads.check()


def test_many_queues_are_read_at_once() -> None:
    reads = queues()
    reads.plan({A: 1, B: 2})
    rows = np.array([reads.row_of(B), reads.row_of(A), reads.row_of(B)])
    assert reads.at(rows).tolist() == [2, 1, 2]


@given(st.lists(st.tuples(st.sampled_from("prk"), st.integers(0, 5), st.integers(0, 100))))
def test_a_queue_is_what_was_planned_and_promised_less_what_was_finished(
    events: list[tuple[str, int, int]],
) -> None:
    reads = queues()
    planned = finished = 0
    promised: dict[int, int] = {}
    for kind, number, tokens in events:
        if kind == "p":
            reads.plan({A: tokens})
            planned += tokens
        elif kind == "r" and finished + tokens <= planned:
            finished += tokens
            reads.report(A, finished)
        elif kind == "k" and number in promised:
            reads.keep_no_promise(RequestId(str(number)))
            del promised[number]
        elif kind == "k":
            reads.promise(RequestId(str(number)), A, tokens)
            promised[number] = tokens
    reads.check()
    assert reads.tokens(A) == planned - finished + sum(promised.values())

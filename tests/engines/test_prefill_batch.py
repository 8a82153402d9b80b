from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.prefill_batch import MAX_WASTE, Waiting, pick_batch

LIMIT = 64
# Few distinct lengths, so that equal ones occur.
QUEUES = st.lists(
    st.builds(Waiting, hit_tokens=st.sampled_from([0, 8, 16]), new_tokens=st.integers(1, 90)),
    min_size=1,
    max_size=12,
)


def rows(*new_tokens: int) -> list[Waiting]:
    return [Waiting(0, num) for num in new_tokens]


def pick(waiting: Sequence[Waiting], *, padding_exact: bool = True) -> tuple[int, ...]:
    return pick_batch(waiting, limit_tokens=LIMIT, padding_exact=padding_exact)


@pytest.mark.parametrize(
    ("waiting", "picked"),
    [
        ([], ()),
        (rows(10), (0,)),
        (rows(1000), (0,)),
        (rows(1000, 1), (0,)),
        (rows(16, 16, 16, 16, 16), (0, 1, 2, 3)),
        (rows(30, 40, 30), (0, 2)),
        (rows(20, 1, 1), (0, 1)),
        (rows(20, 1, 9), (0, 1, 2)),
        (rows(4, 8, 12), (0, 1, 2)),
    ],
    ids=[
        "nobody waits",
        "one",
        "over the limit alone",
        "over the limit, not joined",
        "up to the limit",
        "one too long is passed over",
        "mostly padding",
        "half padding",
        "longer ones join",
    ],
)
def test_a_batch_is_what_fits_the_limit_without_being_mostly_padding(
    waiting: list[Waiting], picked: tuple[int, ...]
) -> None:
    assert pick(waiting) == picked


def test_where_padding_is_not_exact_only_rows_like_the_head_join_it() -> None:
    waiting = [Waiting(8, 5), Waiting(8, 6), Waiting(0, 5), Waiting(8, 5)]
    assert pick(waiting, padding_exact=False) == (0, 3)
    assert pick(waiting) == (0, 1, 2, 3)


@given(QUEUES, st.booleans())
def test_the_head_runs_and_everybody_else_in_the_order_of_arrival(
    waiting: list[Waiting], padding_exact: bool
) -> None:
    picked = pick(waiting, padding_exact=padding_exact)
    assert picked[0] == 0
    assert list(picked) == sorted(set(picked))


@given(QUEUES, st.booleans())
def test_a_batch_costs_no_more_than_the_limit_unless_one_row_does(
    waiting: list[Waiting], padding_exact: bool
) -> None:
    batch = [waiting[index] for index in pick(waiting, padding_exact=padding_exact)]
    padded = len(batch) * max(row.new_tokens for row in batch)
    assert padded <= LIMIT or len(batch) == 1
    assert padded - sum(row.new_tokens for row in batch) <= MAX_WASTE * padded
    assert padding_exact or len(set(batch)) == 1


@given(QUEUES, st.booleans())
def test_nobody_starves(waiting: list[Waiting], padding_exact: bool) -> None:
    # However many join behind, a row runs after at most as many batches as rows were before it.
    queue = [(number, row) for number, row in enumerate(waiting)]
    ran: list[int] = []
    for _ in waiting:
        late = [(-1, Waiting(0, 1))] * 5
        picked = pick([row for _, row in [*queue, *late]], padding_exact=padding_exact)
        ran += [queue[index][0] for index in picked if index < len(queue)]
        queue = [entry for index, entry in enumerate(queue) if index not in picked]
        if not queue:
            break
    assert sorted(ran) == list(range(len(waiting)))

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.estimate import PromptWork, TimeEstimate
from engines.scheduling.prefill_batch import MAX_WASTE, padded_work, pick_padded_chunks
from engines.scheduling.prefill_quota import Chunk, PromptRest, Quota

BLOCK = 8
LIMIT = 64
PER_TOKEN = TimeEstimate((0.0, 1.0, 0.0, 0.0), forgetting=1.0, prior_weight=1.0, outlier_factor=2.0)
"""A second for every new token, padding counted, to count by."""
# Few distinct lengths, so that equal ones occur.
QUEUES = st.lists(
    st.builds(PromptRest, cached_tokens=st.sampled_from([0, 8, 16]), new_tokens=st.integers(1, 90)),
    min_size=1,
    max_size=12,
)
QUOTAS = st.sampled_from([math.inf, 10.0, 30.0, 60.0])


def rows(*new_tokens: int) -> list[PromptRest]:
    return [PromptRest(0, num) for num in new_tokens]


def pick(
    waiting: Sequence[PromptRest],
    *,
    padding_exact: bool = True,
    attention_s: float = math.inf,
    limit_kv_tokens: float = math.inf,
) -> list[tuple[int, int]]:
    quota = Quota(attention_s, 1, LIMIT, limit_kv_tokens, BLOCK)
    chunks = pick_padded_chunks(waiting, PER_TOKEN, quota, padding_exact=padding_exact)
    return [(chunk.index, chunk.new_tokens) for chunk in chunks]


def indices(chunks: Sequence[tuple[int, int]]) -> list[int]:
    return [index for index, _ in chunks]


@pytest.mark.parametrize(
    ("waiting", "picked"),
    [
        ([], []),
        (rows(10), [(0, 10)]),
        (rows(1000), [(0, 64)]),
        (rows(1000, 1), [(0, 64)]),
        (rows(16, 16, 16, 16, 16), [(0, 16), (1, 16), (2, 16), (3, 16)]),
        (rows(30, 40, 30), [(0, 30), (2, 30)]),
        (rows(20, 1, 1), [(0, 20), (1, 1)]),
        (rows(20, 1, 9), [(0, 20), (1, 1), (2, 9)]),
        (rows(4, 8, 12), [(0, 4), (1, 8), (2, 12)]),
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
    waiting: list[PromptRest], picked: list[tuple[int, int]]
) -> None:
    assert pick(waiting) == picked


@pytest.mark.parametrize(
    ("waiting", "attention_s", "picked"),
    [
        (rows(16, 16, 4), 40.0, [(0, 16), (1, 16)]),
        (rows(10, 30, 1), 32.0, [(0, 10), (1, 16)]),
        (rows(30, 30, 1), 32.0, [(0, 30)]),
        (rows(50, 1), 20.0, [(0, 16)]),
        (rows(50, 1), 3.0, [(0, 8)]),
        (rows(5, 1), 3.0, [(0, 5)]),
    ],
    ids=[
        "what exceeds it waits",
        "the first to exceed it is cut, by what the padded batch costs",
        "not one block of it fits",
        "a long head is cut",
        "a head beyond the quota runs one block",
        "a short head beyond the quota runs",
    ],
)
def test_the_quota_cuts_the_first_row_that_exceeds_it(
    waiting: list[PromptRest], attention_s: float, picked: list[tuple[int, int]]
) -> None:
    assert pick(waiting, attention_s=attention_s) == picked


def test_hbm_bounds_the_batch_by_its_padded_kv() -> None:
    waiting = [PromptRest(40, 8), PromptRest(0, 8), PromptRest(0, 8)]
    assert pick(waiting, limit_kv_tokens=96) == [(0, 8), (1, 8)]
    assert pick(waiting[::-1], limit_kv_tokens=96) == [(0, 8), (1, 8)]


def test_where_padding_is_not_exact_only_rows_like_the_head_join_it() -> None:
    waiting = [PromptRest(8, 5), PromptRest(8, 6), PromptRest(0, 5), PromptRest(8, 5)]
    assert indices(pick(waiting, padding_exact=False)) == [0, 3]
    assert indices(pick(waiting)) == [0, 1, 2, 3]


def test_what_a_padded_batch_computes_is_its_longest_row_times_its_rows() -> None:
    assert padded_work([PromptRest(16, 3), PromptRest(8, 5)]) == PromptWork.of(16, 5) + PromptWork.of(16, 5)


@given(QUEUES, st.booleans(), QUOTAS)
def test_the_head_runs_and_everybody_else_in_the_order_of_arrival(
    waiting: list[PromptRest], padding_exact: bool, attention_s: float
) -> None:
    picked = indices(pick(waiting, padding_exact=padding_exact, attention_s=attention_s))
    assert picked[0] == 0
    assert picked == sorted(set(picked))


@given(QUEUES, st.booleans(), QUOTAS)
def test_a_batch_costs_no_more_than_the_limits_unless_one_block_does(
    waiting: list[PromptRest], padding_exact: bool, attention_s: float
) -> None:
    chunks = pick(waiting, padding_exact=padding_exact, attention_s=attention_s)
    lengths = [tokens for _, tokens in chunks]
    padded = len(chunks) * max(lengths)
    assert padded <= LIMIT
    assert padded <= attention_s or (len(chunks) == 1 and padded <= BLOCK)
    assert padded - sum(lengths) <= MAX_WASTE * padded
    assert padding_exact or len({(waiting[index].cached_tokens, tokens) for index, tokens in chunks}) == 1


@given(QUEUES, st.booleans(), QUOTAS)
def test_only_one_row_of_a_batch_is_cut_and_it_is_the_last_and_cut_to_whole_blocks(
    waiting: list[PromptRest], padding_exact: bool, attention_s: float
) -> None:
    chunks = pick(waiting, padding_exact=padding_exact, attention_s=attention_s)
    cut = [index for index, tokens in chunks if tokens < waiting[index].new_tokens]
    assert cut in ([], [chunks[-1][0]])
    assert all(tokens % BLOCK == 0 for index, tokens in chunks if index in cut)
    assert all(0 < tokens <= waiting[index].new_tokens for index, tokens in chunks)


@given(QUEUES, st.booleans(), QUOTAS)
def test_nobody_starves(waiting: list[PromptRest], padding_exact: bool, attention_s: float) -> None:
    # However many join behind, a row is done after at most as many batches as blocks were before its end.
    queue = [(number, row) for number, row in enumerate(waiting)]
    done: list[int] = []
    for _ in range(sum(row.new_tokens // BLOCK + 1 for row in waiting)):
        late = [PromptRest(0, 1)] * 5
        chunks = pick([row for _, row in queue] + late, padding_exact=padding_exact, attention_s=attention_s)
        first = []
        for index, tokens in chunks:
            if index >= len(queue):
                continue
            number, row = queue[index]
            if tokens == row.new_tokens:
                done.append(number)
            else:
                first.append((number, PromptRest(row.cached_tokens + tokens, row.new_tokens - tokens)))
        queue = first + [entry for index, entry in enumerate(queue) if index not in indices(chunks)]
        if not queue:
            break
    assert sorted(done) == list(range(len(waiting)))


def test_chunks_name_their_rows() -> None:
    quota = Quota(math.inf, 1, LIMIT, math.inf, BLOCK)
    assert pick_padded_chunks(rows(3), PER_TOKEN, quota, padding_exact=True) == (Chunk(0, 3),)

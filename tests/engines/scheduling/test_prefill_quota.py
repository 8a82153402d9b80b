from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.estimate import PromptWork, TimeEstimate
from engines.scheduling.prefill_quota import Chunk, PromptRest, Quota, pick_chunks

BLOCK = 4


def estimate(*coefficients: float) -> TimeEstimate:
    return TimeEstimate(coefficients, forgetting=1.0, prior_weight=1.0, outlier_factor=2.0)


PER_TOKEN = estimate(0.0, 1.0, 0.0, 0.0)
"""A second for every new token, to count by."""


def quota(
    attention_s: float, num_layers: int = 1, limit_tokens: int = 10**9, limit_kv_tokens: float = math.inf
) -> Quota:
    return Quota(attention_s, num_layers, limit_tokens, limit_kv_tokens, BLOCK)


def rests(*new_tokens: int, cached: int = 0) -> list[PromptRest]:
    return [PromptRest(cached, tokens) for tokens in new_tokens]


@pytest.mark.parametrize(
    ("waiting", "seconds", "chunks"),
    [
        ([], 10, []),
        (rests(3, 3, 3), 10, [(0, 3), (1, 3), (2, 3)]),
        (rests(3, 7), 10, [(0, 3), (1, 7)]),
        (rests(3, 8), 10, [(0, 3), (1, 4)]),
        (rests(3, 8, 1), 10, [(0, 3), (1, 4)]),
        (rests(3, 5, 1), 10, [(0, 3), (1, 5), (2, 1)]),
        (rests(8, 8), 10, [(0, 8)]),
        (rests(30, 1), 10, [(0, 8)]),
        (rests(30, 1), 3, [(0, 4)]),
        (rests(3, 1), 0.5, [(0, 3)]),
    ],
    ids=[
        "nobody",
        "all",
        "exactly the quota",
        "the last is cut to whole blocks",
        "nothing runs behind a cut",
        "small ones fit behind",
        "no whole block fits",
        "a long head is cut",
        "a head beyond the quota runs one block",
        "a short head beyond the quota runs",
    ],
)
def test_prompts_run_first_come_first_served_up_to_the_quota(
    waiting: list[PromptRest], seconds: float, chunks: list[tuple[int, int]]
) -> None:
    assert pick_chunks(waiting, PER_TOKEN, quota(seconds)) == tuple(Chunk(*chunk) for chunk in chunks)


def test_the_quota_holds_for_one_layer_or_for_all_together() -> None:
    waiting = rests(*[4] * 10)
    assert len(pick_chunks(waiting, PER_TOKEN, quota(24, num_layers=1))) == 6
    assert len(pick_chunks(waiting, PER_TOKEN, quota(24, num_layers=3))) == 2


def test_cached_tokens_count_by_what_new_ones_attend_to() -> None:
    pairs = estimate(0.0, 0.0, 1.0, 0.0)
    near, far = PromptRest(0, 8), PromptRest(1000, 8)
    assert len(pick_chunks([near] * 4, pairs, quota(150))) == 4
    assert pick_chunks([near, far], pairs, quota(4_200)) == (Chunk(0, 8), Chunk(1, 4))


def test_no_more_tokens_run_than_memory_holds() -> None:
    assert pick_chunks(rests(6, 9), PER_TOKEN, quota(99, limit_tokens=11)) == (Chunk(0, 6), Chunk(1, 4))


def test_no_more_kv_is_in_hbm_than_it_holds() -> None:
    assert pick_chunks(rests(6, 9, cached=8), PER_TOKEN, quota(99, limit_kv_tokens=27)) == (
        Chunk(0, 6),
        Chunk(1, 4),
    )


WAITING = st.lists(
    st.builds(PromptRest, st.integers(0, 500).map(lambda n: n * BLOCK), st.integers(1, 300)), max_size=12
)
ESTIMATE = st.builds(estimate, st.floats(1e-3, 1), st.floats(0, 1), st.floats(0, 0.01), st.floats(0, 0.01))


@given(WAITING, ESTIMATE, st.floats(0.1, 500), st.sampled_from([1, 30]))
def test_a_batch_is_a_prefix_within_the_quota_that_one_more_block_would_exceed(
    waiting: list[PromptRest], guess: TimeEstimate, seconds: float, num_layers: int
) -> None:
    chunks = pick_chunks(waiting, guess, quota(seconds, num_layers))
    assert bool(chunks) == bool(waiting)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    work = PromptWork()
    for chunk in chunks:
        rest = waiting[chunk.index]
        assert 0 < chunk.new_tokens <= rest.new_tokens
        assert chunk.new_tokens == rest.new_tokens or chunk.new_tokens % BLOCK == 0
        assert chunk.new_tokens == rest.new_tokens or chunk is chunks[-1]
        work += PromptWork.of(rest.cached_tokens, chunk.new_tokens)
    only_first_block = len(chunks) == 1 and chunks[0].new_tokens <= BLOCK
    assert only_first_block or not chunks or guess.predict_s(work) * num_layers <= seconds
    if len(chunks) == len(waiting) and (not chunks or chunks[-1].new_tokens == waiting[-1].new_tokens):
        return
    last = chunks[-1]
    cut = last.new_tokens < waiting[last.index].new_tokens
    rest = waiting[last.index if cut else len(chunks)]
    done = last.new_tokens if cut else 0
    before = PromptWork()
    for chunk in chunks[: -1 if cut else None]:
        before += PromptWork.of(waiting[chunk.index].cached_tokens, chunk.new_tokens)
    one_more = before + PromptWork.of(rest.cached_tokens, min(done + BLOCK, rest.new_tokens))
    assert guess.predict_s(one_more) * num_layers > seconds or rest.new_tokens - done < BLOCK

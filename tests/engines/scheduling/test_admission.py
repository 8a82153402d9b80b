from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.admission import blocks_to_load, load_s
from engines.scheduling.estimate import PromptWork, TimeEstimate
from engines.scheduling.read_sides import SideLoad, prefill_share

BLOCK_TOKENS, BLOCK_BYTES = 4, 4


def estimate(*coefficients: float) -> TimeEstimate:
    return TimeEstimate(coefficients, forgetting=1.0, prior_weight=1.0, outlier_factor=2.0)


PER_TOKEN = estimate(0.0, 1.0, 0.0, 0.0)
"""A second for every new token."""


def loaded(hit: int, *sides: SideLoad, busy_s: float = 0.0, guess: TimeEstimate = PER_TOKEN) -> int:
    return blocks_to_load(hit, hit * BLOCK_TOKENS + 2, guess.predict_s, sides, block_bytes=BLOCK_BYTES,
                          block_tokens=BLOCK_TOKENS, engine_busy_s=busy_s)  # fmt: skip


@pytest.mark.parametrize(
    ("side", "busy_s", "blocks"),
    [
        (SideLoad(0, 2.0), 0.0, 10),
        (SideLoad(0, 0.5), 0.0, 0),
        (SideLoad(0, 1.0), 0.0, 10),
        (SideLoad(79, 2.0), 0.0, 0),
        (SideLoad(10, 2.0), 0.0, 10),
        (SideLoad(79, 2.0), 39.5, 10),
        (SideLoad(0, 0.5), 24.0, 3),
    ],
    ids=[
        "loads faster",
        "computes faster",
        "as fast: load",
        "a long queue",
        "a short queue",
        "a long queue while the engine is busy",
        "what loads while the engine is busy",
    ],
)
def test_blocks_are_loaded_as_far_as_that_is_faster(side: SideLoad, busy_s: float, blocks: int) -> None:
    assert loaded(10, side, busy_s=busy_s) == blocks


def test_two_sides_load_together_what_one_would_not() -> None:
    slow = SideLoad(0, 0.6)
    assert loaded(10, slow) == 0
    assert loaded(10, slow, slow) == 10


def test_nothing_to_load_is_nothing() -> None:
    assert loaded(0, SideLoad(0, 1.0)) == 0


SIDE = st.builds(SideLoad, st.floats(0, 200), st.floats(0.1, 20))
SIDES = st.lists(SIDE, min_size=1, max_size=2).map(tuple)
GUESS = st.builds(estimate, st.floats(0, 5), st.floats(0.01, 2), st.floats(0, 0.02), st.floats(0, 0.5))


@given(st.integers(1, 40), SIDE, SIDE)
def test_the_time_to_load_is_that_of_the_best_split(blocks: int, left: SideLoad, right: SideLoad) -> None:
    share = prefill_share(blocks, BLOCK_BYTES, left, right)
    parts = (share, left), (blocks - share, right)
    split_s = max(side.finish_s(part * BLOCK_BYTES) for part, side in parts if part)
    block_s = BLOCK_BYTES / min(left.bytes_per_s, right.bytes_per_s)
    assert split_s - block_s - 1e-6 <= load_s(blocks, BLOCK_BYTES, (left, right)) <= split_s + 1e-6


@given(st.integers(0, 40), SIDES, st.floats(0, 100), GUESS)
def test_no_other_number_of_blocks_gives_the_first_token_sooner(
    hit: int, sides: tuple[SideLoad, ...], busy_s: float, guess: TimeEstimate
) -> None:
    def first_token_s(blocks: int) -> float:
        cached = blocks * BLOCK_TOKENS
        compute_s = guess.predict_s(PromptWork.of(cached, hit * BLOCK_TOKENS + 2 - cached))
        return max(load_s(blocks, BLOCK_BYTES, sides), busy_s) + compute_s

    best_s = min(map(first_token_s, range(hit + 1)))
    chosen = loaded(hit, *sides, busy_s=busy_s, guess=guess)
    assert first_token_s(chosen) <= best_s * (1 + 1e-9)

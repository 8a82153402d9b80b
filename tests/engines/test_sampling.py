"""What a draw depends on, against a plain reference over Python floats.

R rows of a batch, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from engines.sampling import Sampled, SampleSpec, sample, uniform
from engines.types import LEAST_TEMPERATURE, RequestId, SamplingParams

SEED = 11
PLAIN = SamplingParams()


def spec(params: SamplingParams, request: str = "r", index: int = 0) -> SampleSpec:
    return SampleSpec(RequestId(request), index, params, SEED)


def draw(logits_V: Tensor, params: SamplingParams, request: str = "r", index: int = 0) -> Sampled:
    return sample(logits_V[None], [spec(params, request, index)])[0]


def kept_probabilities(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """Slow and plain: the distribution at the temperature, cut by top-k, then min-p, then top-p."""
    largest = max(logits)
    weights = [math.exp((logit - largest) / params.temperature) for logit in logits]
    probs = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(probs)), key=lambda token: (-probs[token], token))
    order = order[: params.top_k] if params.top_k else order
    order = [token for token in order if probs[token] >= params.min_p * probs[order[0]]]
    total, before, nucleus = sum(probs[token] for token in order), 0.0, []
    for token in order:
        if before < params.top_p * total:
            nucleus.append(token)
        before += probs[token]
    return [prob if token in nucleus else 0.0 for token, prob in enumerate(probs)]


def looked_up(probs: list[float], number: float) -> int:
    """The token whose share of the cumulative distribution holds `number`."""
    reached, total = 0.0, sum(probs)
    for token, prob in enumerate(probs):
        reached += prob
        if number * total < reached:
            return token
    raise AssertionError(number)


# The random number ------------------------------------------------------------------------------


def test_the_random_number_depends_on_seed_request_and_index_alone() -> None:
    names = [(seed, request, index) for seed in (0, 1) for request in ("a", "b", "a0") for index in (0, 1)]
    numbers = [uniform(seed, RequestId(request), index) for seed, request, index in names]
    assert len(set(numbers)) == len(names)
    assert numbers == [uniform(seed, RequestId(request), index) for seed, request, index in names]


def test_the_random_numbers_are_pinned() -> None:
    # A change here changes what every recorded seed means.
    assert uniform(7, RequestId("job/3"), 12) == pytest.approx(0.17885793479187606, abs=1e-15)


def test_random_numbers_lie_evenly_in_zero_to_one() -> None:
    numbers = [uniform(SEED, RequestId("r"), index) for index in range(10_000)]
    assert all(0 <= number < 1 for number in numbers)
    tenths = Counter(int(number * 10) for number in numbers)
    assert all(abs(tenths[tenth] - 1000) < 150 for tenth in range(10))


def test_a_requests_own_seed_decides_alone() -> None:
    logits_V, seeded = torch.zeros(1000), replace(PLAIN, seed=5)
    own = draw(logits_V, seeded)
    assert own == sample(logits_V[None], [SampleSpec(RequestId("another"), 0, seeded, 77)])[0]
    assert own != draw(logits_V, PLAIN)
    assert draw(logits_V, replace(PLAIN, seed=0)) not in (own, draw(logits_V, PLAIN))


# Tokens -----------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_most_likely_token_whatever_the_rest_says() -> None:
    logits_V = torch.tensor([0.0, 3.0, 2.9, -1.0])
    for index in range(50):
        params = SamplingParams(temperature=0.0, top_k=2, top_p=0.9, min_p=0.1)
        assert draw(logits_V, params, index=index).token_id == 1


def test_the_least_temperature_still_gives_numbers_and_less_is_refused() -> None:
    logits_V = torch.tensor([-300.0, 300.0, 299.0, 1e4, -1e4])
    sampled = draw(logits_V, SamplingParams(temperature=LEAST_TEMPERATURE))
    assert sampled == Sampled(3, 0.0)
    with pytest.raises(ValueError, match=r"sampling.temperature must be 0 or >= 0.001, got 1e-300"):
        SamplingParams(temperature=1e-300)


@given(
    st.lists(st.floats(-8, 8), min_size=1, max_size=12),
    st.floats(0.2, 3),
    st.integers(0, 6),
    st.sampled_from([0.05, 0.3, 0.7, 0.95, 1.0]),
    st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    st.integers(0, 10**6),
)
def test_a_draw_is_the_plain_references(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, index: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.tensor(logits).tolist()  # what float32 makes of them
    probs = kept_probabilities(logits, params)
    number = uniform(SEED, RequestId("r"), index)
    # Cuts and borders that rounding to float32 may move are another test's business.
    for wobble in (1 - 1e-4, 1 + 1e-4):
        moved = replace(params, top_p=min(1.0, top_p * wobble), min_p=min(1.0, min_p * wobble))
        assume([p > 0 for p in kept_probabilities(logits, moved)] == [p > 0 for p in probs])
        assume(looked_up(probs, min(number * wobble, 1 - 1e-9)) == looked_up(probs, number))
    assume(all(b - a > 1e-4 for a, b in pairwise(sorted(logits))))
    assert draw(torch.tensor(logits), params, index=index).token_id == looked_up(probs, number)


def test_equal_logits_are_cut_at_the_smaller_id() -> None:
    drawn = {draw(torch.zeros(6), SamplingParams(top_k=2), index=i).token_id for i in range(100)}
    assert drawn == {0, 1}


def test_min_p_of_one_keeps_the_most_likely_token() -> None:
    logits_V = torch.tensor([0.0, 1.0, 0.999])
    assert {draw(logits_V, SamplingParams(min_p=1.0), index=i).token_id for i in range(50)} == {1}


@pytest.mark.parametrize(
    "params",
    [PLAIN, SamplingParams(temperature=0.5), SamplingParams(top_k=3), SamplingParams(top_p=0.6, min_p=0.1)],
    ids=["plain", "temperature", "top_k", "top_p and min_p"],
)
def test_tokens_come_as_often_as_their_probability(params: SamplingParams) -> None:
    logits, num_draws = [1.0, 0.0, -0.5, 1.5, -3.0, 0.2], 20_000
    drawn = sample(
        torch.tensor([logits] * num_draws), [spec(params, index=index) for index in range(num_draws)]
    )
    counts = Counter(token.token_id for token in drawn)
    probs = kept_probabilities(logits, params)
    for token, prob in enumerate(probs):
        share = prob / sum(probs)
        # Five standard deviations of a count; a token that is cut never comes.
        assert abs(counts[token] - num_draws * share) <= 5 * math.sqrt(num_draws * share)


def test_impossible_tokens_are_never_drawn() -> None:
    logits_V = torch.full((64,), -math.inf)
    logits_V[[3, 40]] = torch.tensor([0.0, 1.0])
    drawn = {draw(logits_V, PLAIN, index=index).token_id for index in range(200)}
    assert drawn == {3, 40}


# Log-probabilities ------------------------------------------------------------------------------


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=12), st.floats(0.1, 3), st.integers(0, 1000))
def test_the_logprob_is_that_of_the_whole_distribution_at_the_temperature(
    logits: list[float], temperature: float, index: int
) -> None:
    logits_V = torch.tensor(logits)
    params = SamplingParams(temperature=temperature, top_k=1, top_p=0.5, min_p=0.5)
    token = draw(logits_V, params, index=index)
    expected = (logits_V.double() / temperature).log_softmax(-1)[token.token_id]
    assert token.logprob == pytest.approx(float(expected), abs=1e-4)


def test_the_logprob_of_a_greedy_token_is_that_of_temperature_one() -> None:
    logits_V = torch.tensor([0.3, 1.7, -2.0])
    token = draw(logits_V, SamplingParams(temperature=0.0))
    assert token.logprob == pytest.approx(float(logits_V.log_softmax(-1)[1]), abs=1e-6)


# Neighbours -------------------------------------------------------------------------------------


def mixed_params() -> list[SamplingParams]:
    return [
        PLAIN,
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.4, min_p=0.05),
        SamplingParams(seed=3),
    ]


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    specs = [spec(params, request=f"r{i}", index=i) for i in range(20) for params in mixed_params()]
    logits_RV = 3 * torch.randn(len(specs), 500, generator=generator)
    together = sample(logits_RV, specs)
    backwards = sample(logits_RV.flip(0), specs[::-1])[::-1]
    alone = [sample(row[None], [one])[0] for row, one in zip(logits_RV, specs, strict=True)]
    assert together == alone == backwards

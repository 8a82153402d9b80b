from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.estimate import PromptWork, TimeEstimate

DSV32_LAYER = (3.1e-4, 1.65e-6, 2.13e-11, 6.8e-10)
"""Seconds of one layer's attention module of DeepSeek-V3.2 on an H200, fitted to measured times."""
TOKENS = st.integers(0, 100_000)


def estimate(
    profiled: tuple[float, ...] = DSV32_LAYER, *, forgetting: float = 0.98, outlier_factor: float = 4.0
) -> TimeEstimate:
    return TimeEstimate(profiled, forgetting=forgetting, prior_weight=1.0, outlier_factor=outlier_factor)


def some_work(rng: random.Random) -> PromptWork:
    work = PromptWork()
    for _ in range(rng.randrange(1, 9)):
        work += PromptWork.of(rng.randrange(0, 64_000), rng.randrange(64, 2_048))
    return work


def true_s(coefficients: tuple[float, ...], work: PromptWork) -> float:
    return sum(a * b for a, b in zip(coefficients, work.terms(), strict=True))


def test_the_work_of_a_prompt_counts_what_each_new_token_attends_to() -> None:
    pairs = sum(position for position in range(101, 111))
    assert PromptWork.of(100, 10) == PromptWork(10, pairs, 110)
    assert PromptWork.of(100, 10) + PromptWork.of(0, 1) == PromptWork(11, pairs + 1, 111)


def test_cutting_a_prompt_adds_nothing_but_the_reading_of_its_first_part() -> None:
    whole, first, second = PromptWork.of(64, 128), PromptWork.of(64, 64), PromptWork.of(128, 64)
    assert first + second == PromptWork(whole.new_tokens, whole.pairs, whole.kv_tokens + 128)


def test_no_prompts_take_no_time() -> None:
    assert estimate().predict_s(PromptWork()) == 0.0


def test_measured_times_of_a_deepseek_layer_are_met() -> None:
    # 8 requests x 512 new tokens at 8k, 32k, 64k cached (aiconfigurator-core 0.12.0, H200, SGLang 0.5.14).
    for cached, measured_ms in ((8_192, 7.79), (32_768, 9.87), (65_536, 13.2)):
        work = PromptWork.of(cached, 512)
        predicted_s = estimate().predict_s(sum([work] * 7, start=work))
        assert predicted_s * 1e3 == pytest.approx(measured_ms, rel=0.2)


@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0, 10.0])
def test_it_finds_the_machine_s_own_coefficients(factor: float) -> None:
    rng, guess = random.Random(1), estimate()
    machine = tuple(factor * value for value in DSV32_LAYER)
    for _ in range(200):
        work = some_work(rng)
        guess.observe(work, true_s(machine, work) * rng.uniform(0.97, 1.03))
    assert guess.mape < 0.03
    errors = [abs(guess.predict_s(w) / true_s(machine, w) - 1) for w in (some_work(rng) for _ in range(50))]
    assert statistics.mean(errors) < 0.02


def test_it_follows_a_machine_that_becomes_slower() -> None:
    rng, guess = random.Random(2), estimate()
    slower = tuple(1.5 * value for value in DSV32_LAYER)
    for number in range(600):
        work = some_work(rng)
        guess.observe(work, true_s(DSV32_LAYER if number < 300 else slower, work))
    assert guess.mape < 0.02


def test_the_error_is_that_of_predictions_made_before_the_time_was_known() -> None:
    guess, work = estimate(), PromptWork.of(1000, 100)
    assert guess.mape == 0.0
    guess.observe(work, guess.predict_s(work) / 2)
    assert guess.mape == pytest.approx(1.0)


def test_terms_that_a_workload_does_not_vary_stay_as_profiled() -> None:
    guess, work = estimate(), PromptWork.of(32_000, 512)
    for _ in range(1000):
        guess.observe(work, true_s(DSV32_LAYER, work))
    assert guess.coefficients == pytest.approx(DSV32_LAYER, rel=1e-3)


def test_one_odd_time_moves_it_by_no_more_than_the_bound() -> None:
    guess, work = estimate(), PromptWork.of(32_000, 512)
    before_s = guess.predict_s(work)
    guess.observe(work, 1e6 * before_s)
    assert before_s < guess.predict_s(work) <= 4.0 * before_s


def test_a_time_of_nothing_teaches_nothing() -> None:
    guess, work = estimate(), PromptWork.of(32_000, 512)
    for measured_s in (0.0, -1.0, float("nan"), float("inf")):
        guess.observe(work, measured_s)
    guess.observe(PromptWork(), 1.0)
    assert guess.coefficients == DSV32_LAYER
    assert guess.mape == 0.0


@pytest.mark.parametrize("profiled", [(1.0, 1.0), (0.0, 0.0, 0.0, 0.0), (1.0, -1.0, 0.0, 0.0)])
def test_coefficients_that_describe_no_machine_are_refused(profiled: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        estimate(profiled)


@given(
    st.lists(st.tuples(TOKENS, st.integers(1, 8192), st.floats(1e-6, 1e3)), max_size=20),
    TOKENS,
    st.integers(0, 8192),
    st.integers(0, 8192),
)
def test_more_new_tokens_never_take_less_time_whatever_was_observed(
    observed: list[tuple[int, int, float]], cached: int, new: int, more: int
) -> None:
    guess = estimate()
    for cached_tokens, new_tokens, measured_s in observed:
        guess.observe(PromptWork.of(cached_tokens, new_tokens), measured_s)
    assert all(0 <= value < float("inf") for value in guess.coefficients)
    assert guess.predict_s(PromptWork.of(cached, new)) <= guess.predict_s(PromptWork.of(cached, new + more))

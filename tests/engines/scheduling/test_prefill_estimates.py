from __future__ import annotations

import math
import random

import pytest

from engines.scheduling.estimate import PromptWork
from engines.scheduling.prefill_estimates import PrefillEstimates, PrefillProfile
from tests.engines.scheduling.turns import settings

LAYERS = 4
PROFILE = PrefillProfile((3e-4, 1.6e-6, 2e-11, 7e-10), (4e-3, 2e-5, 8e-11, 3e-9), time_scale=1.0)


def quota_s(estimates: PrefillEstimates) -> float:
    return estimates.quota(limit_tokens=1, limit_kv_tokens=math.inf, block_tokens=1).attention_s


def bound_layers(estimates: PrefillEstimates) -> int:
    return estimates.quota(limit_tokens=1, limit_kv_tokens=math.inf, block_tokens=1).num_layers


@pytest.mark.parametrize(
    ("batching", "profile", "in_lockstep", "seconds"),
    [
        ("quota", None, False, 0.3),
        ("quota", PROFILE, True, 0.3),
        ("count", PROFILE, True, math.inf),
        ("auto", None, True, math.inf),
        ("auto", PROFILE, False, math.inf),
        ("auto", PROFILE, True, 0.3),
    ],
)
def test_the_quota_bounds_attention_where_it_is_asked_for_or_has_others_to_keep_even_with(
    batching: str, profile: PrefillProfile | None, in_lockstep: bool, seconds: float
) -> None:
    estimates = PrefillEstimates(settings(batching=batching), LAYERS, profile, in_lockstep=in_lockstep)
    assert quota_s(estimates) == seconds


def test_the_quota_is_meant_in_the_profiled_devices_seconds() -> None:
    hurried = PrefillProfile(PROFILE.layer_attention, PROFILE.forward, time_scale=10.0)
    assert quota_s(PrefillEstimates(settings(), LAYERS, hurried, in_lockstep=True)) == pytest.approx(0.03)


def test_the_quota_holds_for_a_layer_or_for_the_forward() -> None:
    assert (
        bound_layers(
            PrefillEstimates(settings(attention_quota_scope="layer"), LAYERS, PROFILE, in_lockstep=True)
        )
        == 1
    )
    assert (
        bound_layers(
            PrefillEstimates(settings(attention_quota_scope="forward"), LAYERS, PROFILE, in_lockstep=True)
        )
        == LAYERS
    )


def test_without_a_profile_the_configured_coefficients_count_for_every_layer() -> None:
    estimates = PrefillEstimates(
        settings(estimate_coefficients=(1.0, 2.0, 3.0, 4.0)), LAYERS, None, in_lockstep=True
    )
    assert estimates.layer_attention.coefficients == (1.0, 2.0, 3.0, 4.0)
    assert estimates.forward.coefficients == (4.0, 8.0, 12.0, 16.0)


def test_a_machine_that_nobody_profiled_is_foreseen_from_its_first_forward_on() -> None:
    estimates = PrefillEstimates(settings(), LAYERS, None, in_lockstep=True)
    work = PromptWork.of(1_000, 400)
    estimates.observe(work, forward_s=80.0, attention_s=None)
    assert estimates.forward.predict_s(work) == pytest.approx(80.0)
    assert estimates.layer_attention.predict_s(work) == pytest.approx(80.0 / LAYERS)
    assert estimates.forward.mape == 0.0


@pytest.mark.parametrize("slowness", [0.02, 1.0, 50.0])
def test_the_estimates_calibrate_themselves_and_report_their_error(slowness: float) -> None:
    # A machine a good deal faster or slower than what is configured, with a tenth of noise.
    numbers = random.Random(0)
    estimates = PrefillEstimates(settings(), LAYERS, None, in_lockstep=True)
    assert (estimates.layer_attention.mape, estimates.forward.mape) == (0.0, 0.0)
    for _ in range(300):
        work = PromptWork.of(numbers.randrange(0, 30_000), numbers.randrange(64, 2_000))
        took_s = slowness * (0.002 + 1e-5 * work.new_tokens + 1e-9 * work.pairs) * numbers.uniform(0.9, 1.1)
        estimates.observe(work, LAYERS * took_s, None)
    work = PromptWork.of(10_000, 500)
    expected_s = slowness * (0.002 + 0.005 + 1e-9 * work.pairs)
    assert estimates.layer_attention.predict_s(work) == pytest.approx(expected_s, rel=0.15)
    assert estimates.forward.predict_s(work) == pytest.approx(LAYERS * expected_s, rel=0.15)
    assert 0.01 < estimates.layer_attention.mape < 0.15
    assert estimates.num_forwards == 300


def test_attention_is_learnt_apart_from_the_forward_where_it_is_told() -> None:
    estimates = PrefillEstimates(settings(), LAYERS, PROFILE, in_lockstep=True)
    work = PromptWork.of(8_000, 400)
    for _ in range(50):
        estimates.observe(work, forward_s=0.02, attention_s=0.01)
    assert estimates.layer_attention.predict_s(work) == pytest.approx(0.01 / LAYERS, rel=0.1)
    assert estimates.forward.predict_s(work) == pytest.approx(0.02, rel=0.1)

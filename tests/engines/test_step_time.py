"""Profiles and the times they give: against measured operations, and as a TimeEstimate sees them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from engines.model.paced_spec import PacedSpec
from engines.model.profile import ModelProfile
from engines.model.step_time import StepTimes
from engines.model.step_time_fit import TABLES, Tables, fit, fit_all, rounded
from engines.scheduling.estimate import PromptWork, TimeEstimate
from rollout.compose import load_config

ROOT = Path(__file__).parents[2]
NAMES = ("dsv32_660b", "ds_27b", "qwen25_32b")
TABLES_DIR = Path(os.environ.get("DUALPATH_STEP_TIME_TABLES", ROOT.parent / "shared" / "calibration"))
"""The measured tables are no part of the project; where they are not, only their digests are tested."""


def profile(name: str) -> ModelProfile:
    found = load_config([f"model_profile={name}"]).model_profile
    assert found is not None
    return found


def batch(num_prompts: int, cached: int, new: int) -> PromptWork:
    work = PromptWork()
    for _ in range(num_prompts):
        work += PromptWork.of(cached, new)
    return work


@pytest.mark.parametrize(("name", "expected"), list(zip(NAMES, (40_016, 19_680, 262_144), strict=True)))
def test_a_token_keeps_as_many_bytes_as_the_model_does(name, expected):
    assert profile(name).token_bytes == expected


# H200, SGLang 0.5.14: a whole DSA module over 8 requests of 512 new tokens behind a prefix; seconds.
@pytest.mark.parametrize(
    ("cached", "measured_s"), [(2048, 7.274e-3), (8192, 7.787e-3), (32768, 9.873e-3), (65536, 13.193e-3)]
)
def test_attention_takes_as_long_as_was_measured(cached, measured_s):
    times = StepTimes(profile("dsv32_660b"), 1)
    assert times.attention_s(batch(8, cached, 512)) == pytest.approx(measured_s, rel=0.09)


def test_appending_prompts_run_at_the_rate_that_measured_modules_add_up_to():
    work = batch(10, 32_700 - 429, 429)
    rate = work.new_tokens / StepTimes(profile("dsv32_660b"), 1).forward_s(work)
    assert 4_000 < rate < 4_800  # new tokens/s of a GPU: 9.9 ms of attention and 5 to 5.7 of the rest a layer


def test_a_decoding_user_sees_about_as_many_tokens_as_the_public_deployment_shows():
    step_s = StepTimes(profile("dsv32_660b"), 1).decode_s(64, 64 * 4_989)
    assert 15 < 1 / step_s < 30  # 20 to 22 tokens/s, with another number of nodes and batch


@pytest.mark.parametrize("name", NAMES)
def test_time_scale_divides_every_time(name):
    slow, fast = StepTimes(profile(name), 1), StepTimes(profile(name), 8)
    work = batch(3, 16_000, 400)
    for whole, part in (
        (slow.attention_s(work), fast.attention_s(work)),
        (slow.forward_s(work), fast.forward_s(work)),
        (slow.decode_s(7, 100_000), fast.decode_s(7, 100_000)),
    ):
        assert part == pytest.approx(whole / 8)


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_that_starts_from_a_profile_predicts_its_times(name):
    times, work = StepTimes(profile(name), 2), batch(4, 9_000, 300)
    options = {"forgetting": 0.98, "prior_weight": 1.0, "outlier_factor": 4.0}
    assert TimeEstimate(times.attention_coefficients(), **options).predict_s(work) == pytest.approx(
        times.attention_s(work)
    )
    assert TimeEstimate(times.forward_coefficients(), **options).predict_s(work) == pytest.approx(
        times.forward_s(work)
    )


def test_no_prompts_take_no_time():
    times = StepTimes(profile("dsv32_660b"), 1)
    assert times.forward_s(PromptWork()) == times.attention_s(PromptWork()) == 0


@pytest.mark.parametrize(("scale", "layer_bytes"), [(1, 656), (10, 64), (41, 16), (80, 8), (1000, 8)])
def test_scaled_kv_is_whole_words_and_says_its_true_scale(scale, layer_bytes):
    spec = PacedSpec(profile("dsv32_660b"), scale, 1)
    assert spec.layer_bytes == layer_bytes
    assert spec.effective_scale == pytest.approx(656 / layer_bytes)
    layout = spec.layout(64)
    assert (layout.num_layers, layout.token_bytes) == (61, layer_bytes)


def test_two_profiles_never_share_a_block():
    formats = {PacedSpec(profile(name), 82, 1).layout(64).format.digest() for name in NAMES}
    assert len(formats) == len(NAMES)


def test_a_fit_finds_the_weights_that_made_the_times():
    terms = [(1.0, float(a), float(a * b)) for a in (1, 4, 16, 64) for b in (10, 100, 1000)]
    made = fit(terms, [2e-3 + 5e-6 * a + 3e-8 * ab for _, a, ab in terms])
    assert made.weights == pytest.approx((2e-3, 5e-6, 3e-8), rel=1e-3)
    assert made.worst < 1e-3


def test_a_fit_has_no_negative_weights():
    found = fit([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], [3.0, 2.0, 1.0])
    assert min(found.weights) >= 0


def test_the_digests_of_all_tables_are_shipped():
    lines = (ROOT / "engines/model/step_time_tables.txt").read_text().splitlines()
    assert {line.split()[1] for line in lines} == set(TABLES.values())
    assert all(len(bytes.fromhex(line.split()[0])) == 32 for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_carries_the_digest_of_the_tables_its_times_were_fitted_to(name):
    listed = (ROOT / "engines/model/step_time_tables.txt").read_bytes()
    assert profile(name).tables_sha256 == hashlib.sha256(listed).hexdigest()


@pytest.mark.skipif(not TABLES_DIR.is_dir(), reason=f"{TABLES_DIR} holds no measured tables")
def test_refitting_gives_the_shipped_times_bit_for_bit():
    tables = Tables(TABLES_DIR)
    listed = (ROOT / "engines/model/step_time_tables.txt").read_text().split()
    assert tables.digests() == dict(zip(listed[1::2], listed[::2], strict=True))
    times, _ = fit_all(tables)
    for name in NAMES:
        for field in ("attention_s", "rest_s", "decode_s", "decode_collective_s"):
            assert getattr(profile(name), field) == rounded(getattr(times[name], field)), (name, field)

"""A profile from a config.json: the measured models give themselves, others go with their dimensions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engines.model.derived_profile import MEASURED, derive_profile
from engines.model.dimensions import DimensionsUnknown
from engines.model.known_dimensions import DEEPSEEK_V32, DS_27B, GPT_OSS_120B, QWEN3_235B, QWEN25_32B
from engines.model.profile import ModelProfile
from engines.model.step_time import StepTimes
from engines.scheduling.estimate import PromptWork
from rollout.compose import load_config
from rollout.errors import UserError

CONFIGS = Path(__file__).parent / "model_configs"
TIMES = ("attention_s", "rest_s", "decode_s")


def shipped(name: str) -> ModelProfile:
    found = load_config([f"model_profile={name}"]).model_profile
    assert found is not None
    return found


def derived(dimensions) -> ModelProfile:
    measured = {name: shipped(name) for name in MEASURED.values()}
    return derive_profile("a model", dimensions, measured, "here")


@pytest.mark.parametrize(
    ("dimensions", "name"), [(DEEPSEEK_V32, "dsv32_660b"), (QWEN25_32B, "qwen25_32b"), (DS_27B, "ds_27b")]
)
def test_a_shipped_model_gives_its_own_profile(dimensions, name):
    ours, theirs = derived(dimensions), shipped(name)
    assert ours.token_bytes == theirs.token_bytes
    for field in (*TIMES, "weights_bytes", "attention_flops"):
        assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-3), field


def test_half_the_layers_take_half_the_time():
    whole, half = derived(QWEN25_32B), derived(replace(QWEN25_32B, num_layers=32))
    work = PromptWork.of(30_000, 500)
    assert StepTimes(half, 1).forward_s(work) == pytest.approx(StepTimes(whole, 1).forward_s(work) / 2)
    assert half.token_bytes == whole.token_bytes / 2


def test_fp8_weights_compute_twice_as_fast():
    slow, fast = derived(QWEN25_32B), derived(replace(QWEN25_32B, weight_bytes=1))
    assert slow.rest_s == pytest.approx([2 * weight for weight in fast.rest_s])


def test_experts_are_shared_out_over_as_few_gpus_as_hold_them():
    assert derived(QWEN3_235B).expert_parallel_gpus == 8
    assert derived(DS_27B).expert_parallel_gpus == 1
    assert derived(replace(QWEN3_235B, weight_bytes=1)).expert_parallel_gpus == 4


def test_an_expert_parallel_group_of_several_nodes_has_collectives():
    assert derived(DEEPSEEK_V32).collective_bytes == shipped("dsv32_660b").collective_bytes
    assert derived(QWEN3_235B).collective_bytes == (0, 0)


def test_layers_with_windows_are_refused():
    with pytest.raises(DimensionsUnknown, match="18 layers keep a window of 128 tokens"):
        derived(GPT_OSS_120B)


def test_a_job_takes_a_model_by_its_config_json():
    path = CONFIGS / "llama_8b.json"
    profile = load_config(["job=replay", "model_profile=hf", f"model.path={path}"]).model_profile
    assert profile is not None
    assert (profile.token_bytes, profile.max_context_tokens) == (131_072, 131_072)


def test_what_a_config_json_lacks_is_one_line(tmp_path):
    lacking = json.loads((CONFIGS / "llama_8b.json").read_text())
    del lacking["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(lacking))
    with pytest.raises(UserError) as caught:
        load_config(["job=replay", "model_profile=hf", f"model.path={tmp_path}"])
    assert "does not say vocab_size" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("~model_profile.gpu_memory_bytes", "model_profile.gpu_memory_bytes is missing"),
        ("~model_profile.origins.rest_s", "origins must name each number once: rest_s is missing"),
        ("+model_profile.origins.luck=assumed", "luck is no number of a profile"),
        ("model_profile.origins.rest_s=guessed", "'measured', 'derived' or 'assumed'"),
        ("model_profile.expert_parallel_gpus=0", "expert_parallel_gpus must be >= 1, got 0"),
    ],
)
def test_a_profile_without_a_needed_number_is_refused(override, told):
    with pytest.raises(UserError, match=told):
        load_config(["model_profile=dsv32_660b", override])

"""What a config.json says of a model: counted against published sizes and the paper's table 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.model.dimensions import DimensionsUnknown, dimensions_of, read_dimensions
from engines.model.known_dimensions import (
    DEEPSEEK_V3,
    DEEPSEEK_V32,
    DS_27B,
    GPT_OSS_120B,
    QWEN3_235B,
    QWEN25_32B,
)

CONFIGS = Path(__file__).parent / "model_configs"
LLAMA = json.loads((CONFIGS / "llama_8b.json").read_text())


@pytest.mark.parametrize(
    ("dimensions", "billions", "active_billions"),
    [
        (DEEPSEEK_V3, 671, 37),
        (QWEN25_32B, 32.8, 32.0),
        (QWEN3_235B, 235, 22),
        (GPT_OSS_120B, 117, 5.1),
        (DS_27B, 27, 4.3),
    ],
)
def test_parameters_are_as_many_as_published(dimensions, billions, active_billions):
    assert dimensions.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert dimensions.active_parameters / 1e9 == pytest.approx(active_billions, rel=0.03)


@pytest.mark.parametrize(
    ("dimensions", "value_bytes", "token_bytes"),
    [
        (DEEPSEEK_V32, 1, 40_016),
        (DEEPSEEK_V32, 2, 70_272),
        (DS_27B, 1, 19_680),
        (QWEN25_32B, 2, 262_144),
        (QWEN3_235B, 1, 96_256),
    ],
)
def test_kv_is_as_many_bytes_as_published(dimensions, value_bytes, token_bytes):
    assert dimensions.num_layers * dimensions.kv_bytes(value_bytes) == token_bytes


@pytest.mark.parametrize(
    ("file", "known"), [("deepseek_v32.json", DEEPSEEK_V32), ("qwen3_235b.json", QWEN3_235B)]
)
def test_a_config_json_gives_the_known_dimensions(file, known):
    read = read_dimensions(CONFIGS / file)
    assert read.parameters == known.parameters
    assert (read.attention_flops, read.kv_bytes(1)) == (known.attention_flops, known.kv_bytes(1))


def test_a_folder_stands_for_its_config_json(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_dimensions(tmp_path).parameters / 1e9 == pytest.approx(8.03, rel=0.001)


def test_a_model_of_several_parts_is_read_by_its_text_part():
    nested = dimensions_of({"model_type": "seeing", "text_config": LLAMA}, "here")
    assert nested == dimensions_of(LLAMA, "here")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": None}, "here does not say hidden_size"),
        ({"num_attention_heads": None}, "here does not say num_attention_heads"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number >= 1, got 'many'"),
        ({"intermediate_size": None}, "does not say intermediate_size"),
        ({"num_local_experts": 8}, "does not say num_experts_per_tok"),
        ({"kv_lora_rank": 512}, "does not say qk_nope_head_dim"),
        ({"layer_types": ["linear_attention"]}, "layers of type linear_attention is not kept"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers=32"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by awq are not known"),
        ({"torch_dtype": "float64"}, "torch_dtype must be bfloat16 or float16, got 'float64'"),
    ],
)
def test_what_is_missing_or_strange_is_named_in_one_line(changes, told):
    with pytest.raises(DimensionsUnknown) as caught:
        dimensions_of({**LLAMA, **changes}, "here")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_file_that_is_no_config_is_named(text, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(DimensionsUnknown, match=r"config\.json"):
        read_dimensions(file)

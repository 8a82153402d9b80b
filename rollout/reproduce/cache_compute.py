"""Table 1: gigabytes of KV loaded for a petaflop computed, at 429 appended tokens behind 16k to 64k."""

from __future__ import annotations

from engines.model.dimensions import Dimensions
from engines.model.known_dimensions import (
    DEEPSEEK_V3,
    DEEPSEEK_V32,
    DS_27B,
    GPT_OSS_120B,
    QWEN3_235B,
    QWEN25_32B,
)
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

_APPEND_TOKENS = 429
_CONTEXTS = {"16k": 16_384, "64k": 65_536}
_MODELS: dict[str, tuple[Dimensions, int, tuple[float, float] | None]] = {
    "qwen25_32b": (QWEN25_32B, 2, (117, 267)),
    "gpt_oss_120b": (GPT_OSS_120B, 1, (47, 95)),
    "qwen3_235b": (QWEN3_235B, 1, (39, 60)),
    "dsv32_660b": (DEEPSEEK_V32, 1, (13, 36)),
    "deepseek_v3": (DEEPSEEK_V3, 1, (4.8, 5.8)),
    "ds_27b": (DS_27B, 1, None),
}
"""Dimensions, bytes of a value of KV, and the paper's figures at both contexts."""


def cache_compute(desk: Desk) -> None:
    for model, (dimensions, value_bytes, paper) in _MODELS.items():
        for place, (name, context) in enumerate(_CONTEXTS.items()):
            desk.tell(
                Comparison(
                    "cache_compute",
                    f"{model}_{name}",
                    f"{model}, {context} tokens of context, {'fp8' if value_bytes == 1 else 'bf16'} KV",
                    gigabytes_per_petaflop(dimensions, value_bytes, context),
                    "GB/PFLOP",
                    paper and PaperValue.within(0.10, paper[place]),
                )
            )


def gigabytes_per_petaflop(dimensions: Dimensions, value_bytes: int, context_tokens: int) -> float:
    """Of a turn behind a stored context; layers with windows load nothing."""
    layers = dimensions.num_layers - dimensions.window_layers
    loaded = context_tokens * layers * dimensions.kv_bytes(value_bytes)
    once, context = dimensions.attention_flops
    flops = 2 * dimensions.active_parameters + once + context * context_tokens
    return loaded / 1e9 / (_APPEND_TOKENS * flops / 1e15)

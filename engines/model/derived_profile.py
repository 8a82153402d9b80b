"""A model's profile from its dimensions alone: KV bytes, FLOPs, weights; times scaled from a measured model.

For any Hugging Face config.json that engines.model.dimensions can read. A group of as few GPUs as hold the
weights shares the experts. Where that group spans nodes, its collectives are those of DeepSeek-V3.2 in
proportion to what a token sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engines.model.dimensions import Dimensions, DimensionsUnknown
from engines.model.known_dimensions import DEEPSEEK_V32, QWEN25_32B
from engines.model.profile import ModelProfile, Origin
from engines.model.scaled_times import ProfileTimes, grouped_times, latent_times

MEASURED = {"latent": "dsv32_660b", "grouped": "qwen25_32b"}
"""Profiles that others are scaled from, by the kind of attention."""
_ORIGINS: dict[str, Origin] = {
    "num_layers": "derived",
    "kv_bytes": "derived",
    "indexer_bytes": "assumed",
    "attention_s": "derived",
    "rest_s": "derived",
    "decode_s": "derived",
    "decode_collective_s": "assumed",
    "collective_bytes": "assumed",
    "max_context_tokens": "derived",
    "active_parameters": "derived",
    "attention_flops": "derived",
    "weights_bytes": "derived",
    "expert_parallel_gpus": "assumed",
    "gpu_memory_bytes": "assumed",
}
_MOST_WEIGHTS = 0.6
"""Share of a GPU's memory that a group's weights may take before the group is made larger."""
_GROUPS = (1, 2, 4, 8, 16, 32)
_NODE_GPUS = 8


def derive_profile(
    name: str, dimensions: Dimensions, measured: Mapping[str, ModelProfile], where: str
) -> ModelProfile:
    """`measured` holds the profiles that MEASURED names; `where` goes into what is refused.

    Raises DimensionsUnknown for a model with layers that see a window only.
    """
    if dimensions.window_layers:
        raise DimensionsUnknown(
            f"{where}: {dimensions.window_layers} layers keep a window of {dimensions.window_tokens} tokens; "
            "a profile is for models whose layers all keep every token"
        )
    latent = dimensions.latent is not None
    reference = measured[MEASURED["latent" if latent else "grouped"]]
    group = _group_gpus(dimensions, reference.gpu_memory_bytes)
    if latent:
        times = latent_times(_times_of(reference), DEEPSEEK_V32, dimensions)
    else:
        times = grouped_times(_times_of(reference), QWEN25_32B, dimensions, group)
    fp8_kv = latent and dimensions.weight_bytes == 1
    profile = ModelProfile(
        name=name,
        num_layers=dimensions.num_layers,
        kv_bytes=dimensions.kv_bytes(1 if fp8_kv else 2),
        indexer_bytes=0,
        attention_s=times.attention_s,
        rest_s=times.rest_s,
        decode_s=times.decode_s,
        decode_collective_s=(0.0, 0.0),
        collective_bytes=(0, 0),
        max_context_tokens=dimensions.max_context_tokens,
        active_parameters=float(dimensions.active_parameters),
        attention_flops=dimensions.attention_flops,
        weights_bytes=(
            float(dimensions.weight_bytes * dimensions.other_parameters),
            float(dimensions.weight_bytes * dimensions.routed_parameters),
        ),
        expert_parallel_gpus=group,
        gpu_memory_bytes=reference.gpu_memory_bytes,
        origins=_ORIGINS,
        tables_sha256=reference.tables_sha256,
    )
    if group <= _NODE_GPUS:
        return profile  # within a node collectives are over no NIC
    return _with_collectives(profile, dimensions, measured[MEASURED["latent"]])


def _with_collectives(profile: ModelProfile, dimensions: Dimensions, latent: ModelProfile) -> ModelProfile:
    """Of an expert-parallel group of several nodes."""
    assert dimensions.experts is not None
    assert DEEPSEEK_V32.experts is not None
    hidden = dimensions.hidden / DEEPSEEK_V32.hidden
    sent = hidden * dimensions.experts.active / DEEPSEEK_V32.experts.active
    layers = dimensions.num_layers / DEEPSEEK_V32.num_layers
    once, row = latent.decode_collective_s
    once, row = once * layers, row * layers * sent
    step, request, context = profile.decode_s
    if dimensions.latent is None:  # a dense model's times, which these scale from, have no collectives
        step, request = step + once, request + row
    prefill_bytes, decode_bytes = latent.collective_bytes
    return replace(
        profile,
        decode_s=(step, request, context),
        decode_collective_s=(once, row),
        collective_bytes=(round(prefill_bytes * hidden), round(decode_bytes * sent)),
    )


def _group_gpus(dimensions: Dimensions, gpu_memory_bytes: float) -> int:
    """As few GPUs as leave room for KV; the most there may be where none do."""
    if dimensions.experts is None:
        return 1
    own, shared = dimensions.other_parameters, dimensions.routed_parameters
    for gpus in _GROUPS:
        if dimensions.weight_bytes * (own + shared / gpus) <= _MOST_WEIGHTS * gpu_memory_bytes:
            return gpus
    return _GROUPS[-1]


def _times_of(profile: ModelProfile) -> ProfileTimes:
    return ProfileTimes(profile.attention_s, profile.rest_s, profile.decode_s, profile.decode_collective_s)

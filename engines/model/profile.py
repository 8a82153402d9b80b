"""What is known of a model that is not run: the bytes of its KV and weights, and how long one GPU computes.

A profile holds for one GPU of the deployment that its file in conf/model_profile names; `origins` says of
each number whether it was measured, derived or assumed. It knows neither the scale of a run nor any engine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from engines.bounds import require_above, require_at_least

Origin = Literal["measured", "derived", "assumed"]
_NOT_NUMBERS = ("name", "origins", "tables_sha256")


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One model on one kind of GPU."""

    name: str
    """Goes into the KV format: blocks of two profiles are never taken for each other's."""
    num_layers: int
    """Layers, each with its own KV."""
    kv_bytes: int
    """KV bytes of a token in one layer."""
    indexer_bytes: int
    """Bytes of a token's indexer keys in one layer, kept beside its KV. 0: they are not stored."""
    attention_s: tuple[float, float, float, float]
    """Seconds of one layer's attention module in prefill, as weights of PromptWork's terms: per forward, per
    new token, per pair of a query and a key, per token of KV."""
    rest_s: tuple[float, float]
    """Seconds of the rest of a layer in prefill (experts or MLP, and the collectives that nothing hides): per
    forward, per new token."""
    decode_s: tuple[float, float, float]
    """Seconds of a whole decode step: per step, per request, per token of all requests' contexts."""
    decode_collective_s: tuple[float, float]
    """The part of decode_s that is collectives: per step, per request."""
    collective_bytes: tuple[int, int]
    """Bytes that a token sends over the compute NIC in one layer's collectives: in prefill, in decode."""
    max_context_tokens: int
    """Longest context of the model."""
    active_parameters: float
    """Parameters that a token passes, its output projection included."""
    attention_flops: tuple[float, float]
    """FLOPs of a new token's attention in all layers beside those of its parameters: whatever the context,
    and for every token of it."""
    weights_bytes: tuple[float, float]
    """Bytes of weights: those that every GPU holds, and those that an expert-parallel group shares out."""
    expert_parallel_gpus: int
    """GPUs of an expert-parallel group, which computes in step. 1: every GPU for itself."""
    gpu_memory_bytes: float
    """HBM of the GPU."""
    origins: dict[str, Origin]
    """Where each number above is from. `measured`: fitted to measured operations; `derived`: from the model's
    dimensions; `assumed`: neither. A number of several parts has the weakest of their origins."""
    tables_sha256: str | None
    """Of the list of tables that measured times were fitted to (engines/model/step_time_tables.txt); null: no
    times were."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "num_layers", "max_context_tokens", "expert_parallel_gpus")
        require_above(self, 0, "active_parameters", "gpu_memory_bytes")
        require_at_least(self, 8, "kv_bytes")
        require_at_least(self, 0, "indexer_bytes")
        for name in ("attention_s", "rest_s", "decode_s"):
            weights = getattr(self, name)
            if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
                raise ValueError(f"{name} must be numbers >= 0, one of them above 0, got {list(weights)}")

        for name in ("decode_collective_s", "collective_bytes", "attention_flops", "weights_bytes"):
            if not all(0 <= value < float("inf") for value in getattr(self, name)):
                raise ValueError(f"{name} must be numbers >= 0, got {list(getattr(self, name))}")
        numbers = {field.name for field in fields(self)} - {*_NOT_NUMBERS}
        for name in sorted(numbers ^ set(self.origins)):
            said = "is missing" if name in numbers else "is no number of a profile"
            raise ValueError(f"origins must name each number once: {name} {said}")

    @property
    def layer_bytes(self) -> int:
        """What a token keeps in one layer."""
        return self.kv_bytes + self.indexer_bytes

    @property
    def token_bytes(self) -> int:
        """What a token keeps in all layers."""
        return self.num_layers * self.layer_bytes

    def flops_per_token(self, context_tokens: float) -> float:
        """Of one new token behind a context."""
        once, context = self.attention_flops
        return 2 * self.active_parameters + once + context * context_tokens

    def gigabytes_per_petaflop(self, context_tokens: float, append_tokens: float) -> float:
        """KV loaded over FLOPs computed for a turn that appends to a stored context: the cache-compute ratio
        (DualPath, arXiv 2602.21548, table 1), GB/PFLOP."""
        loaded = context_tokens * self.token_bytes / 1e9
        return loaded / (append_tokens * self.flops_per_token(context_tokens) / 1e15)

    def weights_bytes_on(self, group_gpus: int) -> float:
        """Bytes of weights on each GPU where a group has so many."""
        own, shared = self.weights_bytes
        return own + shared / group_gpus

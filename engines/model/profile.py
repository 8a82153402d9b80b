"""What is known of a model that is not run: the bytes of its KV, and how long one GPU computes.

A profile holds for one GPU of the deployment that its file in conf/model_profile names, where each number is
marked as measured, derived or assumed. It knows neither the scale of a run nor any engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.bounds import require_at_least


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

    def __post_init__(self) -> None:
        require_at_least(self, 1, "num_layers")
        require_at_least(self, 8, "kv_bytes")
        require_at_least(self, 0, "indexer_bytes")
        for name in ("attention_s", "rest_s", "decode_s"):
            weights = getattr(self, name)
            if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
                raise ValueError(f"{name} must be numbers >= 0, one of them above 0, got {list(weights)}")

        for name in ("decode_collective_s", "collective_bytes"):
            if not all(0 <= value < float("inf") for value in getattr(self, name)):
                raise ValueError(f"{name} must be numbers >= 0, got {list(getattr(self, name))}")

    @property
    def layer_bytes(self) -> int:
        """What a token keeps in one layer."""
        return self.kv_bytes + self.indexer_bytes

    @property
    def token_bytes(self) -> int:
        """What a token keeps in all layers."""
        return self.num_layers * self.layer_bytes

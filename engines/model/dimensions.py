"""The dimensions of a decoder, and what follows from them: parameters, FLOPs of a token, bytes of its KV.

Read from a Hugging Face config.json: dense or with experts, grouped queries (GQA) or multi-head latent
attention (MLA), with or without an indexer that selects keys. Nothing here is measured, and nothing knows a
GPU. Layers whose KV is not kept for every token are counted apart (windows) or refused (anything else).

Counts are per token unless said; a FLOP is a multiplication or an addition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FP8_TILE = 128
"""Values of a latent that share one scale of 4 bytes, where KV is kept in fp8."""
_FULL, _WINDOW = "full_attention", "sliding_attention"


class DimensionsUnknown(ValueError):
    """A config.json does not say what is needed; one line names it."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a layer that has them."""

    routed: int
    active: int
    """Of the routed ones, those a token passes."""
    shared: int
    """Experts of the same size that every token passes."""
    intermediate: int
    dense_layers: int
    """First layers, which have one MLP instead."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""

    query_rank: int
    """0: queries are projected at once."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Indexer:
    """What selects the keys that a query attends to (DeepSeek-V3.2)."""

    heads: int
    head_dim: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A decoder's shape."""

    num_layers: int
    hidden: int
    vocabulary: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    """Of a dense MLP; 0 where every layer has experts."""
    max_context_tokens: int
    weight_bytes: int
    """Of a parameter: 1 in fp8, 2 in bf16."""
    tied_embeddings: bool = False
    experts: Experts | None = None
    latent: Latent | None = None
    indexer: Indexer | None = None
    window_layers: int = 0
    """Layers that keep no more than the last `window_tokens` tokens; they store nothing for good."""
    window_tokens: int = 0

    # -- parameters ------------------------------------------------------------------------------------

    @property
    def attention_parameters(self) -> int:
        """Projections of one layer's attention, without those of an indexer."""
        if self.latent is None:
            return self.hidden * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        at, heads = self.latent, self.num_heads
        query_dim = at.nope_dim + at.rope_dim
        query = self.hidden * at.query_rank + (at.query_rank or self.hidden) * heads * query_dim
        kv = self.hidden * (at.kv_rank + at.rope_dim) + at.kv_rank * heads * (at.nope_dim + at.value_dim)
        return query + kv + heads * at.value_dim * self.hidden

    @property
    def indexer_parameters(self) -> int:
        if self.indexer is None:
            return 0
        query_from = (self.latent.query_rank if self.latent else 0) or self.hidden
        return query_from * self.indexer.heads * self.indexer.head_dim + self.hidden * (
            self.indexer.head_dim + self.indexer.heads
        )

    @property
    def expert_parameters(self) -> int:
        """Of one expert: gate, up and down."""
        return 3 * self.hidden * self.experts.intermediate if self.experts else 0

    @property
    def active_mlp_parameters(self) -> int:
        """What a token passes beside attention in a layer; of a layer with experts, where there is one."""
        if self.experts is None:
            return 3 * self.hidden * self.intermediate
        return (self.experts.active + self.experts.shared) * self.expert_parameters

    @property
    def expert_layers(self) -> int:
        return self.num_layers - self.experts.dense_layers if self.experts else 0

    @property
    def routed_parameters(self) -> int:
        """Of all routed experts: what an expert-parallel group shares out."""
        return self.expert_layers * self.experts.routed * self.expert_parameters if self.experts else 0

    @property
    def other_parameters(self) -> int:
        """All that is not a routed expert; every GPU of a data-parallel group has it."""
        shared = self.experts.shared * self.expert_parameters if self.experts else 0
        return (
            self.num_layers * (self.attention_parameters + self.indexer_parameters)
            + self.expert_layers * shared
            + (self.num_layers - self.expert_layers) * 3 * self.hidden * self.intermediate
            + self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)
        )

    @property
    def parameters(self) -> int:
        return self.routed_parameters + self.other_parameters

    @property
    def active_parameters(self) -> int:
        """What a token passes; looking its embedding up is not counted, the output projection is."""
        dense_layers = self.num_layers - self.expert_layers
        return (
            self.num_layers * (self.attention_parameters + self.indexer_parameters)
            + self.expert_layers * self.active_mlp_parameters
            + dense_layers * 3 * self.hidden * self.intermediate
            + self.vocabulary * self.hidden
        )

    # -- FLOPs -----------------------------------------------------------------------------------------

    @property
    def pair_flops(self) -> float:
        """Of a query and one key it attends to, in one layer. MLA with its projections absorbed."""
        if self.latent is None:
            return 4.0 * self.num_heads * self.head_dim
        return 2.0 * self.num_heads * (2 * self.latent.kv_rank + self.latent.rope_dim)

    @property
    def context_flops(self) -> float:
        """Of a new token for every token before it, in one layer that sees the whole context."""
        if self.indexer is None:
            return self.pair_flops
        return 2.0 * self.indexer.heads * self.indexer.head_dim

    @property
    def selected_flops(self) -> float:
        """Of a new token in one layer for the keys an indexer selects, once there are so many."""
        return 0.0 if self.indexer is None else self.indexer.top_k * self.pair_flops

    @property
    def attention_flops(self) -> tuple[float, float]:
        """Of a new token's attention in all layers: whatever the context, and for every token of it."""
        whole_layers = self.num_layers - self.window_layers
        once = self.num_layers * self.selected_flops
        once += self.window_layers * self.window_tokens * self.pair_flops
        return once, whole_layers * self.context_flops

    # -- KV --------------------------------------------------------------------------------------------

    def kv_bytes(self, value_bytes: int) -> int:
        """Of a token in one layer that keeps it, in values of 1 (fp8) or 2 bytes, without indexer keys."""
        if self.latent is None:
            return 2 * self.num_kv_heads * self.head_dim * value_bytes
        if value_bytes > 1:
            return (self.latent.kv_rank + self.latent.rope_dim) * value_bytes
        # FlashMLA: the latent in fp8 with a float32 scale a tile, the rotary part in bf16.
        return self.latent.kv_rank + 4 * (self.latent.kv_rank // _FP8_TILE) + 2 * self.latent.rope_dim


# -- config.json ---------------------------------------------------------------------------------------


def read_dimensions(path: str | Path) -> Dimensions:
    """Of a model's folder or its config.json; DimensionsUnknown in one line."""
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DimensionsUnknown(f"{file} cannot be read as a model's config.json: {reason}") from error
    if not isinstance(config, dict):
        raise DimensionsUnknown(f"{file} is not a model's config.json: it holds no object")
    return dimensions_of(config, str(file))


def dimensions_of(config: Mapping[str, object], where: str) -> Dimensions:
    """Of a parsed config.json; DimensionsUnknown names the first key that is missing or wrong."""
    nested = config.get("text_config")
    fields = _Fields({**config, **nested} if isinstance(nested, dict) else config, where)
    num_layers, heads, hidden = (
        fields.count(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    window_layers = _window_layers(fields, num_layers)
    experts = _experts(fields)
    all_experts = experts is not None and not experts.dense_layers
    return Dimensions(
        num_layers=num_layers,
        hidden=hidden,
        vocabulary=fields.count("vocab_size"),
        num_heads=heads,
        num_kv_heads=fields.count("num_key_value_heads", otherwise=heads),
        head_dim=fields.count("head_dim", otherwise=hidden // heads),
        intermediate=0 if all_experts else fields.count("intermediate_size"),
        max_context_tokens=fields.count("max_position_embeddings"),
        weight_bytes=_weight_bytes(fields),
        tied_embeddings=bool(fields.get("tie_word_embeddings")),
        experts=experts,
        latent=_latent(fields),
        indexer=_indexer(fields),
        window_layers=window_layers,
        window_tokens=fields.count("sliding_window") if window_layers else 0,
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    config: Mapping[str, object]
    where: str

    def get(self, *names: str) -> object:
        """The first of `names` that is set."""
        return next((self.config[name] for name in names if self.config.get(name) is not None), None)

    def count(self, *names: str, otherwise: int | None = None) -> int:
        """A whole number >= 1 under one of `names`."""
        value = self.get(*names)
        if value is None:
            if otherwise is None:
                raise DimensionsUnknown(f"{self.where} does not say {' or '.join(names)}")
            return otherwise
        if not isinstance(value, int) or isinstance(value, bool) or value < (1 if otherwise != 0 else 0):
            raise DimensionsUnknown(f"{self.where}: {names[0]} must be a whole number >= 1, got {value!r}")
        return value


def _window_layers(fields: _Fields, num_layers: int) -> int:
    kinds = fields.get("layer_types")
    if not isinstance(kinds, list):
        return 0
    strange = next((kind for kind in kinds if kind not in (_FULL, _WINDOW)), None)
    if strange is not None:
        raise DimensionsUnknown(f"{fields.where}: KV of layers of type {strange} is not kept for each token")
    if len(kinds) != num_layers:
        raise DimensionsUnknown(
            f"{fields.where}: layer_types names {len(kinds)} layers, num_hidden_layers={num_layers}"
        )
    return kinds.count(_WINDOW)


def _experts(fields: _Fields) -> Experts | None:
    names = ("n_routed_experts", "num_routed_experts", "num_experts", "num_local_experts")
    routed = fields.count(*names, otherwise=0)
    if routed <= 1:
        return None
    intermediate = fields.count("moe_intermediate_size", "intermediate_size")
    shared = fields.count("n_shared_experts", "num_shared_experts", otherwise=0)
    shared_width = fields.count("shared_expert_intermediate_size", otherwise=0)
    return Experts(
        routed=routed,
        active=fields.count("num_experts_per_tok", "experts_per_token"),
        shared=shared or -(-shared_width // intermediate),
        intermediate=intermediate,
        dense_layers=fields.count("first_k_dense_replace", otherwise=0),
    )


def _latent(fields: _Fields) -> Latent | None:
    if fields.get("kv_lora_rank") is None:
        return None
    return Latent(
        query_rank=fields.count("q_lora_rank", otherwise=0),
        kv_rank=fields.count("kv_lora_rank"),
        nope_dim=fields.count("qk_nope_head_dim"),
        rope_dim=fields.count("qk_rope_head_dim"),
        value_dim=fields.count("v_head_dim"),
    )


def _indexer(fields: _Fields) -> Indexer | None:
    if fields.get("index_topk") is None:
        return None
    return Indexer(fields.count("index_n_heads"), fields.count("index_head_dim"), fields.count("index_topk"))


def _weight_bytes(fields: _Fields) -> int:
    quantised = fields.get("quantization_config")
    if isinstance(quantised, dict):
        method = quantised.get("quant_method")
        if method != "fp8":
            raise DimensionsUnknown(
                f"{fields.where}: weights quantised by {method} are not known here, only fp8 and bf16 are"
            )
        return 1
    kind = fields.get("dtype", "torch_dtype")
    if kind not in ("bfloat16", "float16", None):
        raise DimensionsUnknown(f"{fields.where}: torch_dtype must be bfloat16 or float16, got {kind!r}")
    return 2

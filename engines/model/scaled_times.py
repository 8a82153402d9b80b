"""Times of a model that nobody measured: those of one that was, scaled by what their dimensions ask for.

What is per call stays or goes with the weights that are read, what is per token goes with the FLOPs, what is
read goes with the bytes. Latent attention is scaled from DeepSeek-V3.2, grouped queries from Qwen2.5-32B. The
results are derived at best; which parts are mere assumptions the comments say.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.model.dimensions import Dimensions


@dataclass(frozen=True, slots=True)
class ProfileTimes:
    """The fields of one ModelProfile that are times."""

    attention_s: tuple[float, float, float, float]
    rest_s: tuple[float, float]
    decode_s: tuple[float, float, float]
    decode_collective_s: tuple[float, float] = (0.0, 0.0)


def latent_times(measured: ProfileTimes, of: Dimensions, to: Dimensions) -> ProfileTimes:
    """Of a model with latent attention; collectives stay within decode_s.

    What is per call stays: launches, and experts that are read. Without an indexer every pair costs full
    attention, at the rate of the indexer's FLOPs (assumed).
    """
    faster = to.weight_bytes / of.weight_bytes  # bf16 computes at half the rate of fp8
    projections = faster * _projection_flops(to) / _projection_flops(of)
    experts = faster * to.active_mlp_parameters / of.active_mlp_parameters
    pairs = to.context_flops / of.context_flops
    once, new, pair, kv = measured.attention_s
    rest_once, rest_new = measured.rest_s
    step, row, context = measured.decode_s
    layers = to.num_layers / of.num_layers
    return ProfileTimes(
        attention_s=(once, new * projections, pair * pairs, kv),
        rest_s=(rest_once, rest_new * experts),
        decode_s=(step * layers, row * layers * experts, context * layers * pairs),
    )


def grouped_times(measured: ProfileTimes, of: Dimensions, to: Dimensions, group_gpus: int) -> ProfileTimes:
    """Of a model with grouped queries, `group_gpus` of which share its routed experts.

    Of such a GPU's experts all are read in every call (assumed: batches are large).
    """
    faster = to.weight_bytes / of.weight_bytes
    mlp_bytes = _mlp_bytes(to, group_gpus) / _mlp_bytes(of, 1)
    all_bytes = _weights_bytes(to, group_gpus) / _weights_bytes(of, 1)
    once, new, pair, kv = measured.attention_s
    rest_once, rest_new = measured.rest_s
    step, row, context = measured.decode_s
    return ProfileTimes(
        attention_s=(
            once,
            new * faster * to.attention_parameters / of.attention_parameters,
            pair * to.pair_flops / of.pair_flops,
            kv * to.kv_bytes(2) / of.kv_bytes(2),
        ),
        rest_s=(
            rest_once * mlp_bytes,
            rest_new * faster * to.active_mlp_parameters / of.active_mlp_parameters,
        ),
        decode_s=(
            step * all_bytes,
            row * faster * to.active_parameters / of.active_parameters,
            context * to.num_layers * to.kv_bytes(2) / (of.num_layers * of.kv_bytes(2)),
        ),
    )


def _projection_flops(dimensions: Dimensions) -> float:
    """Of a new token in one layer's latent attention, whatever its context."""
    return 2.0 * dimensions.attention_parameters + dimensions.selected_flops


def _mlp_bytes(dimensions: Dimensions, group_gpus: int) -> float:
    """Weights of one layer's MLP or experts on one GPU."""
    experts = dimensions.experts
    if experts is None:
        return dimensions.weight_bytes * dimensions.active_mlp_parameters
    held = experts.routed / group_gpus + experts.shared
    return dimensions.weight_bytes * held * dimensions.expert_parameters


def _weights_bytes(dimensions: Dimensions, group_gpus: int) -> float:
    held = dimensions.other_parameters + dimensions.routed_parameters / group_gpus
    return dimensions.weight_bytes * held

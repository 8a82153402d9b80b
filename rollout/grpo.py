"""The arithmetic of GRPO on tensors: logprobs of given tokens, and the clipped loss with its figures.

It knows no model, no processes and no optimiser.
Axes: B rows, T tokens, V vocabulary, N loss tokens (the sampled tokens of a micro batch, row by row).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClipRange:
    """The ratio of new to old probability is clipped to [1 - low, 1 + high]."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LossParts:
    """A micro batch's share of a step's loss."""

    loss: Tensor
    """Scalar with a gradient. Summed over a step's micro batches and ranks it is the step's loss."""
    num_clipped: int
    """Tokens whose gradient the clipping took away."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one set of logprobs lies from another over the same tokens; adds up over micro batches."""

    num_tokens: int = 0
    diff_sum: float = 0.0
    """Of |new - old|."""
    diff_max: float = 0.0
    ratio_sum: float = 0.0
    """Of exp(new - old)."""
    ratio_max: float = 0.0

    def __add__(self, more: Drift) -> Drift:
        return Drift(
            self.num_tokens + more.num_tokens,
            self.diff_sum + more.diff_sum,
            max(self.diff_max, more.diff_max),
            self.ratio_sum + more.ratio_sum,
            max(self.ratio_max, more.ratio_max),
        )


def token_logprobs(logits_NV: Tensor, token_ids_N: Tensor, temperature: float) -> Tensor:
    """log_softmax(logits / temperature) at the given tokens, as float32, over any leading axes.

    Temperature 0 counts as 1, as it does where tokens are sampled (engines.types.SamplingParams).
    """
    logits_NV = logits_NV.float()
    if temperature not in (0.0, 1.0):
        logits_NV = logits_NV / temperature
    # Not log_softmax: that would hold one more tensor as large as the logits.
    chosen_N = logits_NV.gather(-1, token_ids_N[..., None])[..., 0]
    return chosen_N - logits_NV.logsumexp(-1)


def grpo_loss(
    new_logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    clip: ClipRange,
    total_loss_tokens: int,
) -> LossParts:
    """The clipped policy loss, summed over the tokens given and divided by the step's number of them.

    `total_loss_tokens` counts all ranks and micro batches, so how rows are cut up changes nothing.
    """
    ratio_N = (new_logprobs_N - old_logprobs_N).exp()
    unclipped_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip.low, 1 + clip.high) * advantages_N
    loss = -torch.minimum(unclipped_N, clipped_N).sum() / total_loss_tokens
    return LossParts(loss, num_clipped=int((clipped_N < unclipped_N).sum()))


def measure_drift(new_logprobs_N: Tensor, old_logprobs_N: Tensor) -> Drift:
    if not len(new_logprobs_N):
        return Drift()
    log_ratio_N = (new_logprobs_N.detach() - old_logprobs_N).double()
    diff_N, ratio_N = log_ratio_N.abs(), log_ratio_N.exp()
    return Drift(
        num_tokens=len(log_ratio_N),
        diff_sum=float(diff_N.sum()),
        diff_max=float(diff_N.max()),
        ratio_sum=float(ratio_N.sum()),
        ratio_max=float(ratio_N.max()),
    )

"""Draws output tokens from logits.

The random number of output i of a request depends only on (job seed, request id, i), or on (seed, i) where
the request brings a seed of its own. So a request's tokens do not depend on what it was batched with, on
which engine sampled them, or on a preemption. One uniform number is drawn per token and looked up in the
cumulative distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.types import RequestId, SamplingParams


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """What one row of a batch needs to draw its next token."""

    request_id: RequestId
    output_index: int
    params: SamplingParams
    job_seed: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """One drawn token; its logprob is that of SamplingParams."""

    token_id: int
    logprob: float


def uniform(seed: int, request_id: RequestId, output_index: int) -> float:
    """The number in [0, 1) that decides output `output_index` of the request."""
    text = f"{seed}\0{request_id}\0{output_index}".encode()
    word = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return (word >> 11) / (1 << 53)


def _number(spec: SampleSpec) -> float:
    if spec.params.seed is None:
        return uniform(spec.job_seed, spec.request_id, spec.output_index)
    return uniform(spec.params.seed, RequestId(""), spec.output_index)


@torch.no_grad()
def sample(logits_BV: Tensor, specs: Sequence[SampleSpec]) -> list[Sampled]:
    """Draw one token per row of `logits_BV` [len(specs), vocabulary]."""
    logits_BV = logits_BV.float()
    temperature_B = logits_BV.new_tensor([spec.params.temperature or 1.0 for spec in specs])
    logprobs_BV = torch.log_softmax(logits_BV / temperature_B[:, None], dim=-1)
    token_B = logprobs_BV.argmax(dim=-1)
    drawn = [row for row, spec in enumerate(specs) if spec.params.temperature > 0]
    if drawn:
        token_B[drawn] = _draw(logprobs_BV[drawn], [specs[row] for row in drawn])
    logprob_B = logprobs_BV.gather(1, token_B[:, None])[:, 0]
    return [
        Sampled(int(token), float(logprob))
        for token, logprob in zip(token_B.tolist(), logprob_B.tolist(), strict=True)
    ]


def _draw(logprobs_BV: Tensor, specs: Sequence[SampleSpec]) -> Tensor:
    """Inverse-CDF draw per row after top-k, top-p and min-p have cut the distribution."""
    probs_BV = logprobs_BV.exp()
    # Only the rows that want it: cutting at top_p = 1 may round a tail away, and a row must not feel its
    # neighbours.
    cut = [row for row, spec in enumerate(specs) if _truncates(spec.params)]
    if cut:
        probs_BV[cut] = _truncated(probs_BV[cut], [specs[row].params for row in cut])
    cumulative_BV = probs_BV.double().cumsum(dim=-1)
    numbers = [_number(spec) for spec in specs]
    threshold_B1 = cumulative_BV[:, -1:] * cumulative_BV.new_tensor(numbers)[:, None]
    token_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True)[:, 0]
    # Rounding may carry the threshold to the total: then the last token with any probability is meant.
    last_B = (probs_BV > 0).long().cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(token_B, last_B)


def _truncates(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _truncated(probs_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Zero the tokens that top-k, min-p and top-p leave out, in that order."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(probs_BV.shape[-1], device=probs_BV.device)
    top_k_B1 = rank_V.new_tensor([p.top_k or probs_BV.shape[-1] for p in params])[:, None]
    min_p_B1 = probs_BV.new_tensor([p.min_p for p in params])[:, None]
    top_p_B1 = probs_BV.new_tensor([p.top_p for p in params])[:, None]
    kept_BV = (rank_V < top_k_B1) & (sorted_BV >= min_p_B1 * sorted_BV[:, :1])
    sorted_BV = sorted_BV * kept_BV
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    nucleus_BV = before_BV < top_p_B1 * sorted_BV.sum(dim=-1, keepdim=True)
    sorted_BV = sorted_BV * nucleus_BV
    return torch.zeros_like(probs_BV).scatter_(1, order_BV, sorted_BV)

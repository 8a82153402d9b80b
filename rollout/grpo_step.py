"""The loop of one training step on one rank: forward passes, loss, backward passes, optimiser steps.

It drives anything that accumulates gradients as GradientEngine says, and adds up the figures over ranks.
It knows no trajectories, no configuration and no DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

import torch
from torch import distributed

from rollout.batch import TrainRow
from rollout.grpo import ClipRange, Drift, grpo_loss, measure_drift
from rollout.policy_model import RowTensors, row_tensors

if TYPE_CHECKING:
    from torch import Tensor


class GradientEngine(Protocol):
    """A model with an optimiser, shared by the ranks."""

    @property
    def device(self) -> torch.device: ...

    def forward(self, rows: RowTensors, temperature: float) -> Tensor:
        """Logprobs of the rows' sampled tokens."""

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add to the gradient, which is summed over ranks by the time of `is_last`."""

    def step(self) -> float:
        """Take an optimiser step; return the gradient's norm before clipping."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """One rank's share of a training step; all ranks have as many micro batches."""

    micro_batches: Sequence[Sequence[TrainRow]]
    total_loss_tokens: int
    """Of all ranks."""
    temperature: float
    """Of the sampling the rows came from."""
    clip: ClipRange
    old_from_rollout: bool
    """Whether the ratio is taken against the engines' logprobs, not this model's before the step."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What a step measured, over all ranks."""

    loss: float
    """Mean over the optimiser steps."""
    grad_norm: float
    """Before clipping; mean over the optimiser steps."""
    clip_frac: float
    drift: Drift


def measure_only(engine: GradientEngine, work: StepWork) -> StepFigures:
    """Compare the model's logprobs with the engines'; collective, changes nothing."""
    drift = Drift()
    with torch.no_grad():
        for rows in work.micro_batches:
            tensors = row_tensors(rows, engine.device)
            drift += _drift_of(rows, engine.forward(tensors, work.temperature), tensors)
    return _over_ranks(engine.device, StepFigures(0.0, 0.0, 0.0, drift))


def optimise(engine: GradientEngine, work: StepWork, num_optimizer_steps: int) -> StepFigures:
    """Take that many optimiser steps over the same micro batches; collective."""
    drift, loss, grad_norms, num_clipped = Drift(), 0.0, [], 0
    first_logprobs: list[Tensor] = []
    for epoch in range(num_optimizer_steps):
        for index, rows in enumerate(work.micro_batches):
            tensors = row_tensors(rows, engine.device)
            new_logprobs_N = engine.forward(tensors, work.temperature)
            if epoch == 0:
                first_logprobs.append(new_logprobs_N.detach())
                drift += _drift_of(rows, new_logprobs_N, tensors)
            rollout_N = tensors.rollout_logprobs_N
            parts = grpo_loss(
                new_logprobs_N,
                rollout_N if work.old_from_rollout else first_logprobs[index],
                tensors.advantages_N,
                work.clip,
                work.total_loss_tokens,
            )
            engine.backward(parts.loss, is_last=index + 1 == len(work.micro_batches))
            loss += parts.loss.item()
            num_clipped += parts.num_clipped
        grad_norms.append(engine.step())
    share = 1 / num_optimizer_steps
    clip_frac = num_clipped * share / work.total_loss_tokens
    figures = StepFigures(loss * share, fmean(grad_norms), clip_frac, drift)
    return _over_ranks(engine.device, figures)


def _drift_of(rows: Sequence[TrainRow], new_logprobs_N: Tensor, tensors: RowTensors) -> Drift:
    return measure_drift(new_logprobs_N, tensors.rollout_logprobs_N) if rows else Drift()


def _over_ranks(device: torch.device, mine: StepFigures) -> StepFigures:
    """Sums and maxima over ranks; `grad_norm` is the same on all of them already."""
    drift = mine.drift
    sums = torch.tensor(
        [mine.loss, mine.clip_frac, drift.num_tokens, drift.diff_sum, drift.ratio_sum],
        dtype=torch.float64,
        device=device,
    )
    maxima = torch.tensor([drift.diff_max, drift.ratio_max], dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    distributed.all_reduce(maxima, op=distributed.ReduceOp.MAX)
    loss, clip_frac, num_tokens, diff_sum, ratio_sum = sums.tolist()
    diff_max, ratio_max = maxima.tolist()
    total = Drift(round(num_tokens), diff_sum, diff_max, ratio_sum, ratio_max)
    return StepFigures(loss, mine.grad_norm, clip_frac, total)

"""What one training step measured, under the names it is logged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollout.batch import TrainBatch
    from rollout.grpo_step import StepFigures


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """One training step, over all ranks.

    Where no forward pass ran (no rows, or all of them skipped) the logprob figures are those of equal
    logprobs: difference 0, ratio 1.
    """

    loss: float
    """Mean over the step's optimiser steps; 0 if it took none."""
    grad_norm: float
    """Before clipping; mean over the optimiser steps."""
    clip_frac: float
    """Share of loss tokens whose gradient the ratio's clipping took away."""
    logprob_diff_mean: float
    """Of |trainer - rollout| over sampled tokens, before the first optimiser step."""
    logprob_diff_max: float
    importance_ratio_mean: float
    """Of exp(trainer - rollout)."""
    importance_ratio_max: float
    num_rows: int
    num_tokens: int
    """Prompt and tool tokens counted, padding not."""
    num_loss_tokens: int
    reward_mean: float
    skipped_trajectories: int
    """Failed or taken back: in neither baseline nor loss."""
    num_optimizer_steps: int
    """0 where every advantage is 0: the weights stay as they are."""
    step_s: float

    def as_dict(self) -> dict[str, float]:
        """By slash-grouped series name."""
        return {
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/clip_frac": self.clip_frac,
            "train/logprob_diff/mean": self.logprob_diff_mean,
            "train/logprob_diff/max": self.logprob_diff_max,
            "train/importance_ratio/mean": self.importance_ratio_mean,
            "train/importance_ratio/max": self.importance_ratio_max,
            "train/num_rows": self.num_rows,
            "train/num_tokens": self.num_tokens,
            "train/num_loss_tokens": self.num_loss_tokens,
            "train/reward_mean": self.reward_mean,
            "train/skipped_trajectories": self.skipped_trajectories,
            "train/num_optimizer_steps": self.num_optimizer_steps,
            "train/step_s": self.step_s,
        }


def summarise(
    batch: TrainBatch, figures: StepFigures, num_optimizer_steps: int, step_s: float
) -> TrainMetrics:
    """Put a step's batch and its figures together."""
    drift = figures.drift
    num_measured = max(drift.num_tokens, 1)
    return TrainMetrics(
        loss=figures.loss,
        grad_norm=figures.grad_norm,
        clip_frac=figures.clip_frac,
        logprob_diff_mean=drift.diff_sum / num_measured,
        logprob_diff_max=drift.diff_max,
        importance_ratio_mean=drift.ratio_sum / num_measured if drift.num_tokens else 1.0,
        importance_ratio_max=drift.ratio_max if drift.num_tokens else 1.0,
        num_rows=len(batch.rows),
        num_tokens=sum(row.num_tokens for row in batch.rows),
        num_loss_tokens=batch.num_loss_tokens,
        reward_mean=batch.reward_mean,
        skipped_trajectories=batch.num_skipped_trajectories,
        num_optimizer_steps=num_optimizer_steps,
        step_s=step_s,
    )

"""What can be configured about training: meaning and bounds, no values.

The values live in conf/trainer/. This file imports no torch, so that a configuration loads quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.bounds import require_above, require_at_least


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """How a GRPO step is computed, over how many processes, and when it is saved."""

    steps: int
    """Training steps of the run, each one after a rollout step. 0: none."""
    learning_rate: float
    """AdamW's, the same at every step."""
    weight_decay: float
    """AdamW's, on every weight."""
    betas: tuple[float, float]
    """AdamW's decay rates of the gradient's mean and of its square."""
    grad_clip: float
    """Greatest norm of a step's gradient; a longer one is scaled down to it. 0: no clipping."""
    clip_low: float
    """The ratio of new to old probability is clipped from below at 1 - clip_low."""
    clip_high: float
    """The ratio of new to old probability is clipped from above at 1 + clip_high."""
    old_logprobs: Literal["trainer", "rollout"]
    """Whose logprobs the ratio is taken against: the trainer's own at the start of the step, or those
    the engines sampled with."""
    normalise_std: bool
    """Whether rewards are divided by their standard deviation in the group, beside the mean taken off."""
    skip_zero_advantage: bool
    """Whether rows whose advantage is 0 are left out of the forward passes. The update is the same; such
    rows are then missing from logprob_diff and importance_ratio."""
    micro_batch_tokens: int
    """Most tokens, padding counted, in one forward pass; a longer row has a pass to itself."""
    epochs_per_step: int
    """Optimiser steps taken on each rollout step's trajectories."""
    zero_stage: Literal[0, 1, 2, 3]
    """What the ranks share out, by DeepSpeed's ZeRO: nothing, optimiser state, gradients too, weights
    too."""
    ranks: int
    """Training processes."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the ranks compute. In a job only `cuda` gives each rank a GPU of its own, beside the engines';
    `auto` takes what the rank's process sees."""
    dtype: Literal["float32", "bfloat16"]
    """Of the weights in the forward pass; the optimiser's own copy is float32."""
    threads: int
    """Torch threads of each rank, on CPU."""
    save_every_steps: int
    """Training steps between checkpoints. 0: never."""
    collective_deadline_s: float
    """Longest a rank waits for the others before the training step counts as failed."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "steps", "weight_decay", "grad_clip", "save_every_steps")
        require_at_least(self, 1, "micro_batch_tokens", "epochs_per_step", "ranks", "threads")
        require_above(self, 0, "learning_rate", "clip_low", "clip_high", "collective_deadline_s")
        if not self.clip_low < 1:
            raise ValueError(f"clip_low must be > 0 and < 1, got {self.clip_low}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers >= 0 and < 1, got {self.betas}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}")

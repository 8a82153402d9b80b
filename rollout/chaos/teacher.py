"""Is what a trajectory says what its weights say? Teacher forcing, with the models themselves.

A token is wrong if its logprob is off by more than TOLERANCE at the version that the trajectory records for
it, or, where the most likely token was to be taken, if another one is likelier by more than that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from rollout.types import NO_VERSION, Trajectory

TOLERANCE = 1e-3


def first_wrong_token(
    trajectory: Trajectory, model_of: Callable[[int], PreTrainedModel], *, greedy: bool
) -> str | None:
    """Tells the first token that is wrong; None: none is. Each token must come from KV of its own version."""
    for number, segment in enumerate(trajectory.segments):
        segment.check()
        for version in sorted(set(segment.weights_versions) - {NO_VERSION}):
            said = _logprobs(model_of(version), list(segment.token_ids))
            for place, sampled_by in enumerate(segment.weights_versions):
                if sampled_by != version:
                    continue
                token, own = segment.token_ids[place], segment.logprobs[place]
                theirs, best = float(said[place - 1, token]), float(said[place - 1].max())
                where = f"{trajectory.trajectory_id}, segment {number}, token {place}, version {version}"
                if abs(own - theirs) > TOLERANCE:
                    return f"{where}: logprob {own:.5f}, the model says {theirs:.5f}"
                if greedy and best - theirs > TOLERANCE:
                    return f"{where}: logprob {theirs:.5f}, another token has {best:.5f}"
    return None


@torch.no_grad()
def _logprobs(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([token_ids])).logits
    return logits[0].log_softmax(-1)

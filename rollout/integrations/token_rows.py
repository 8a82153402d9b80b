"""Trajectories as the token rows that a trainer of other people's takes: a prompt, and what came after it.

Pure: it decides where a trajectory's prompt ends, and what stands for one that is not to be trained on.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.batch import is_usable
from rollout.errors import RolloutError
from rollout.types import Segment, Trajectory


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One trajectory. The last three arrays have one length, at least 1."""

    prompt_ids: array[int]
    """All before the first sampled token; at least one."""
    completion_ids: array[int]
    """From the first sampled token to the last: what the model and its tools said."""
    logprobs: array[float]
    """0.0 where the model did not sample."""
    sampled: array[int]
    """1 on tokens the model sampled, 0 on those of tools."""
    reward: float | None
    """None where the trajectory is not to be trained on."""


def token_row(trajectory: Trajectory, blank_id: int) -> TokenRow:
    """The trajectory's row. One whose reward is not about its tokens is a blank: one token a side, none of
    them sampled.

    Raises RolloutError if sampled tokens lie in several segments, which one row cannot hold.
    """
    spoken = [segment for segment in trajectory.segments if any(segment.loss_mask)]
    if not spoken or not is_usable(trajectory):
        blank = array("i", [blank_id])
        return TokenRow(blank, blank, array("f", [0.0]), array("b", [0]), None)
    if len(spoken) > 1:
        raise RolloutError(
            f"{trajectory.trajectory_id} has {len(spoken)} segments; a trainer's row holds one conversation "
            "that only grows"
        )
    return _row_of(spoken[0], trajectory.reward)


def _row_of(segment: Segment, reward: float) -> TokenRow:
    first = segment.loss_mask.index(1)
    end = len(segment) - segment.loss_mask[::-1].index(1)
    return TokenRow(
        prompt_ids=segment.token_ids[:first],
        completion_ids=segment.token_ids[first:end],
        logprobs=segment.logprobs[first:end],
        sampled=segment.loss_mask[first:end],
        reward=reward,
    )


def pick(trajectories: Sequence[Trajectory], num_wanted: int) -> list[Trajectory]:
    """So many of a group, in order: usable ones first where there are more."""
    spare = sorted(range(len(trajectories)), key=lambda i: (not is_usable(trajectories[i]), i))
    return [trajectories[i] for i in sorted(spare[:num_wanted])]

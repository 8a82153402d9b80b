"""Trajectories to training rows, and rows to micro batches and ranks.

Decides which trajectories count, what each token's advantage is, and which process computes which row.
It knows no tensors: rows share the segments' arrays. The order of its answers depends on nothing but its
arguments, so every rank can work out the same plan alone.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rollout.types import Outcome, Segment, StopReason, Trajectory

STD_EPSILON = 1e-4
"""Added to a group's standard deviation before rewards are divided by it."""

UNUSABLE_OUTCOMES = frozenset({Outcome.ENGINE_FAILED, Outcome.TOOL_FAILED, Outcome.TIMED_OUT})
"""Their reward says nothing about the tokens, so they are in neither the baseline nor the loss."""

CUT_SHORT = frozenset({StopReason.ABORTED, StopReason.DROPPED})
"""Somebody else ended these, so their reward is not the task's."""


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One segment, as training sees it."""

    token_ids: array[int]
    loss_mask: array[int]
    old_logprobs: array[float]
    """The engines', at sampling."""
    weights_versions: array[int]
    advantage: float

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_loss_tokens(self) -> int:
        """Sampled tokens; the first token of a row has nothing before it to be predicted from."""
        return sum(self.loss_mask[1:])


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What one rollout step gives to training."""

    rows: tuple[TrainRow, ...]
    """Every segment with a sampled token, of every usable trajectory."""
    reward_mean: float
    """Over the usable trajectories; 0 where there are none."""
    num_skipped_trajectories: int

    @property
    def num_loss_tokens(self) -> int:
        return sum(row.num_loss_tokens for row in self.rows)


def make_rows(trajectories: Iterable[Trajectory], *, normalise_std: bool) -> TrainBatch:
    """Give each sampled token its trajectory's advantage over its group.

    Every segment is a row, and a trajectory's segments share its advantage. A trajectory that failed or
    was taken back is left out of the baseline, the loss and the mean reward, and is counted.
    """
    usable, num_skipped = [], 0
    for trajectory in trajectories:
        if is_usable(trajectory):
            usable.append(trajectory)
        else:
            num_skipped += 1
    advantages = group_advantages(usable, normalise_std=normalise_std)
    rows = tuple(
        row
        for trajectory, advantage in zip(usable, advantages, strict=True)
        for segment in trajectory.segments
        if (row := _row_of(segment, advantage)).num_loss_tokens
    )
    reward_mean = fmean(trajectory.reward for trajectory in usable) if usable else 0.0
    return TrainBatch(rows, reward_mean, num_skipped)


def is_usable(trajectory: Trajectory) -> bool:
    """Whether a trajectory's reward is about the tokens it sampled."""
    return trajectory.outcome not in UNUSABLE_OUTCOMES and trajectory.stop_reason not in CUT_SHORT


def group_advantages(trajectories: Sequence[Trajectory], *, normalise_std: bool) -> list[float]:
    """Reward less the group's mean, over the group's standard deviation if so asked.

    A group that agrees, or has one member, has advantage 0.
    """
    rewards: defaultdict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        rewards[trajectory.group_id].append(trajectory.reward)
    advantages = []
    for trajectory in trajectories:
        group = rewards[trajectory.group_id]
        if min(group) == max(group):
            advantages.append(0.0)
            continue
        scale = stdev(group) + STD_EPSILON if normalise_std else 1.0
        advantages.append((trajectory.reward - fmean(group)) / scale)
    return advantages


def micro_batches(rows: Iterable[TrainRow], max_tokens: int) -> list[list[TrainRow]]:
    """Pack rows, longest first, so that rows times longest row is at most `max_tokens`.

    A row longer than that has a micro batch to itself.
    """
    packed: list[list[TrainRow]] = []
    for row in sorted(rows, key=_length, reverse=True):
        if packed and (len(packed[-1]) + 1) * packed[-1][0].num_tokens <= max_tokens:
            packed[-1].append(row)
        else:
            packed.append([row])
    return packed


def shard(rows: Iterable[TrainRow], rank: int, world_size: int, max_tokens: int) -> list[list[TrainRow]]:
    """The micro batches of one rank; every rank has as many, some of them perhaps empty.

    Each row goes to one rank: the longest first, to the rank with the fewest tokens so far.
    """
    shares: list[list[TrainRow]] = [[] for _ in range(world_size)]
    num_tokens = [0] * world_size
    for row in sorted(rows, key=_length, reverse=True):
        lightest = num_tokens.index(min(num_tokens))
        shares[lightest].append(row)
        num_tokens[lightest] += row.num_tokens
    packed = [micro_batches(share, max_tokens) for share in shares]
    num_empty = max(map(len, packed)) - len(packed[rank])
    return packed[rank] + [[] for _ in range(num_empty)]


def _length(row: TrainRow) -> int:
    return row.num_tokens


def _row_of(segment: Segment, advantage: float) -> TrainRow:
    return TrainRow(
        token_ids=segment.token_ids,
        loss_mask=segment.loss_mask,
        old_logprobs=segment.logprobs,
        weights_versions=segment.weights_versions,
        advantage=advantage,
    )

from __future__ import annotations

import random
from array import array

import pytest

from rollout.batch import TrainRow, group_advantages, make_rows, micro_batches, shard
from rollout.types import Segment, StopReason, Trajectory
from tests.rollout.training import make_segment, make_trajectory


def group_of(rewards: list[float], group_id: str = "g0") -> list[Trajectory]:
    return [
        make_trajectory(reward, group_id=group_id, sample_index=index) for index, reward in enumerate(rewards)
    ]


def row_of(num_tokens: int) -> TrainRow:
    return TrainRow(
        token_ids=array("i", range(num_tokens)),
        loss_mask=array("b", [0] + [1] * (num_tokens - 1)),
        old_logprobs=array("f", [0.0] * num_tokens),
        weights_versions=array("i", [0] * num_tokens),
        advantage=1.0,
    )


def random_rows(seed: int) -> list[TrainRow]:
    rng = random.Random(seed)
    return [row_of(rng.randint(2, 90)) for _ in range(rng.randint(1, 40))]


def test_an_advantage_is_the_reward_less_the_mean_of_its_own_group() -> None:
    trajectories = group_of([1.0, 0.0, 0.0, 0.0], "a") + group_of([3.0, 1.0], "b")
    assert group_advantages(trajectories, normalise_std=False) == [0.75, -0.25, -0.25, -0.25, 1, -1]


def test_normalising_divides_by_the_sample_standard_deviation() -> None:
    got = group_advantages(group_of([1.0, 0.0, 0.0, 0.0]), normalise_std=True)
    assert got == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)


@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [0.7]])
def test_a_group_that_agrees_has_no_advantage(rewards: list[float]) -> None:
    assert group_advantages(group_of(rewards), normalise_std=True) == [0.0] * len(rewards)


@pytest.mark.parametrize(
    "reason",
    [StopReason.ENGINE_ERROR, StopReason.TOOL_ERROR, StopReason.WALL_TIME, StopReason.ABORTED],
)
def test_a_failed_trajectory_is_in_neither_the_baseline_nor_the_rows(reason: StopReason) -> None:
    failed = make_trajectory(100.0, sample_index=9, stop_reason=reason)
    batch = make_rows([*group_of([1.0, 0.0]), failed], normalise_std=False)
    assert [row.advantage for row in batch.rows] == [0.5, -0.5]
    assert (batch.num_skipped_trajectories, batch.reward_mean) == (1, 0.5)


@pytest.mark.parametrize("reason", [StopReason.MAX_TURNS, StopReason.MAX_CONTEXT])
def test_a_trajectory_cut_by_a_limit_counts(reason: StopReason) -> None:
    cut = make_trajectory(0.0, sample_index=1, stop_reason=reason)
    batch = make_rows([make_trajectory(1.0), cut], normalise_std=False)
    assert [row.advantage for row in batch.rows] == [0.5, -0.5]


def test_every_segment_is_a_row_with_its_trajectorys_advantage() -> None:
    segments = (make_segment([1], [2, 3]), make_segment([1, 2], [4]))
    batch = make_rows(
        [make_trajectory(1.0, *segments), make_trajectory(0.0, sample_index=1)], normalise_std=False
    )
    assert [row.token_ids.tolist() for row in batch.rows] == [[1, 2, 3], [1, 2, 4], [1, 2, 3]]
    assert [row.advantage for row in batch.rows] == [0.5, 0.5, -0.5]
    assert batch.num_loss_tokens == 4


def test_a_segment_without_a_sampled_token_is_no_row_but_its_reward_counts() -> None:
    unsampled = Segment()
    unsampled.append_given([1, 2])
    batch = make_rows(
        [make_trajectory(1.0), make_trajectory(0.0, unsampled, sample_index=1)], normalise_std=False
    )
    assert [row.advantage for row in batch.rows] == [0.5]


def test_no_trajectories_make_an_empty_batch() -> None:
    batch = make_rows([], normalise_std=True)
    assert (batch.rows, batch.reward_mean, batch.num_loss_tokens) == ((), 0.0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_micro_batches_hold_every_row_once_within_the_padded_limit(seed: int) -> None:
    rows = random_rows(seed)
    packed = micro_batches(rows, 100)
    packed_rows = [row for batch in packed for row in batch]
    assert sorted(map(id, packed_rows)) == sorted(map(id, rows))
    for batch in packed:
        padded = len(batch) * max(row.num_tokens for row in batch)
        assert padded <= 100


def test_short_rows_share_a_micro_batch_and_a_row_over_the_limit_stands_alone() -> None:
    packed = micro_batches([row_of(3), row_of(50), row_of(4), row_of(3)], 12)
    assert [[row.num_tokens for row in batch] for batch in packed] == [[50], [4, 3, 3]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_share_the_rows_evenly_in_equally_many_micro_batches(seed: int, world_size: int) -> None:
    rows = random_rows(seed)
    shares = [shard(rows, rank, world_size, 100) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    dealt = [row for share in shares for batch in share for row in batch]
    assert sorted(map(id, dealt)) == sorted(map(id, rows))
    num_tokens = [sum(row.num_tokens for batch in share for row in batch) for share in shares]
    assert max(num_tokens) - min(num_tokens) <= max(row.num_tokens for row in rows)


def test_a_rank_without_rows_has_empty_micro_batches() -> None:
    assert shard([row_of(5)], 1, 2, 100) == [[]]
    assert shard([], 0, 2, 100) == []

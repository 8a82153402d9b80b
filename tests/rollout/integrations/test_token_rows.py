"""Trajectories become the rows of a foreign trainer: the prompt, then what model and tools said."""

from __future__ import annotations

import pytest

from rollout.errors import RolloutError
from rollout.integrations.token_rows import pick, token_row
from rollout.types import Segment, StopReason
from tests.rollout.training import make_segment, make_trajectory

BLANK = 7


def two_turns() -> Segment:
    segment = make_segment([1, 2, 3], [4, 5], logprob=-0.5)
    segment.append_given([6])
    segment.append_sampled([8], [-0.25], 0)
    segment.append_given([9, 9])
    return segment


def test_a_row_ends_with_the_last_sampled_token_and_masks_what_tools_said() -> None:
    row = token_row(make_trajectory(0.5, two_turns()), BLANK)
    assert row.prompt_ids.tolist() == [1, 2, 3]
    assert row.completion_ids.tolist() == [4, 5, 6, 8]
    assert row.sampled.tolist() == [1, 1, 0, 1]
    assert row.logprobs.tolist() == [-0.5, -0.5, 0.0, -0.25]
    assert row.reward == 0.5


@pytest.mark.parametrize("reason", [StopReason.TOOL_ERROR, StopReason.ENGINE_ERROR, StopReason.DROPPED])
def test_a_trajectory_that_is_not_to_be_trained_on_is_a_blank_without_a_reward(reason: StopReason) -> None:
    row = token_row(make_trajectory(1.0, two_turns(), stop_reason=reason), BLANK)
    assert (row.prompt_ids.tolist(), row.completion_ids.tolist()) == ([BLANK], [BLANK])
    assert (row.sampled.tolist(), row.reward) == ([0], None)


def test_a_trajectory_that_said_nothing_is_a_blank() -> None:
    assert token_row(make_trajectory(0.0, Segment()), BLANK).reward is None


def test_two_conversations_do_not_fit_a_row() -> None:
    with pytest.raises(RolloutError, match="g0/0 has 2 segments"):
        token_row(make_trajectory(0.0, two_turns(), two_turns()), BLANK)


def test_of_more_trajectories_than_are_wanted_usable_ones_are_picked_in_order() -> None:
    reasons = [StopReason.DONE, StopReason.DROPPED, StopReason.DONE, StopReason.DONE]
    group = [make_trajectory(0.0, sample_index=i, stop_reason=r) for i, r in enumerate(reasons)]
    assert [t.sample_index for t in pick(group, 3)] == [0, 2, 3]
    assert [t.sample_index for t in pick(group[:3], 3)] == [0, 1, 2]

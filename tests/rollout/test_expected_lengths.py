"""What a trajectory has left, as far as the ones before it tell."""

from __future__ import annotations

from rollout.expected_lengths import ExpectedLengths


def test_nothing_is_expected_before_anything_has_ended():
    assert ExpectedLengths().remaining("task", 10, 1000) is None


def test_the_longest_of_the_task_is_expected_and_of_any_task_until_there_is_one():
    lengths = ExpectedLengths()
    lengths.note("other", 700)
    assert lengths.remaining("task", 100, 1000) == 600
    lengths.note("task", 300)
    lengths.note("task", 200)
    assert lengths.remaining("task", 100, 1000) == 200


def test_one_that_outgrew_all_others_is_expected_to_reach_its_limit():
    lengths = ExpectedLengths()
    lengths.note("task", 300)
    assert lengths.remaining("task", 300, 1000) == 700

"""Sessions with other lengths and waits."""

from __future__ import annotations

from statistics import mean

import pytest

from rollout.traces.scaled import scaled, with_tool_waits
from rollout.traces.session import Piece, Round, Session

SESSION = Session(
    "a",
    (
        Round((Piece("x", 0, 100),), 10),
        Round((Piece("x", 100, 50),), 20, 3.0),
        Round((Piece("x", 150, 30),), 5, keep_tokens=90),
    ),
)


def prompts(session: Session) -> list[int]:
    return [prompt for prompt, _ in session.prompts()]


def test_scaling_by_one_changes_no_length():
    (same,) = scaled([SESSION], 1.0, 1.0, 10_000)
    assert prompts(same) == prompts(SESSION)
    assert [each.tool_wait_s for each in same.rounds] == [0.0, 3.0, 0.0]


def test_what_is_appended_and_generated_is_multiplied():
    (twice,) = scaled([SESSION], 2.0, 3.0, 10_000)
    assert [each.append_tokens for each in twice.rounds] == [200, 100, 60]
    assert [each.output_tokens for each in twice.rounds] == [30, 60, 15]


def test_what_a_round_keeps_stays_in_proportion():
    (twice,) = scaled([SESSION], 2.0, 2.0, 10_000)
    assert twice.rounds[2].keep_tokens == 180


def test_a_session_is_cut_where_its_context_would_not_fit():
    (cut,) = scaled([SESSION], 2.0, 1.0, 250)
    assert len(cut.rounds) == 1


def test_made_waits_have_the_mean_and_are_the_same_again():
    long = Session("b", SESSION.rounds[:2] * 2_000)
    (waiting,) = with_tool_waits([long], 5.0)
    assert mean(each.tool_wait_s for each in waiting.rounds) == pytest.approx(5.0, rel=0.1)
    assert with_tool_waits([long], 5.0) == [waiting]

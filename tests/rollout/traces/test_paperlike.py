"""Made sessions have the means of the paper's table 2, all at once."""

from __future__ import annotations

from statistics import mean

import pytest

from rollout.traces.load import load_sessions
from rollout.traces.paperlike import PAPER_SETS, paperlike_sessions

SETS = {name: load_sessions(name) for name in PAPER_SETS}


@pytest.mark.parametrize("name", PAPER_SETS)
def test_all_means_over_trajectories_are_the_papers(name):
    wanted, sessions = PAPER_SETS[name], SETS[name]
    assert len(sessions) == 500
    found = {
        "turns": mean(len(session.rounds) for session in sessions),
        "append": mean(mean(each.append_tokens for each in session.rounds) for session in sessions),
        "output": mean(mean(each.output_tokens for each in session.rounds) for session in sessions),
        "total": mean(session.longest_context_tokens for session in sessions),
        "context": mean(
            mean(prompt - each.append_tokens for prompt, each in session.prompts()) for session in sessions
        ),
    }
    for figure, value in found.items():
        assert value == pytest.approx(getattr(wanted, figure), rel=0.01), figure


@pytest.mark.parametrize("name", PAPER_SETS)
def test_no_context_is_longer_than_the_set_allows(name):
    assert max(session.longest_context_tokens for session in SETS[name]) <= PAPER_SETS[name].max_context


def test_the_share_of_a_context_that_was_there_before_is_the_papers():
    for name, hit in (("paper-32k", 0.966), ("paper-48k", 0.981), ("paper-64k", 0.987)):
        context, append = PAPER_SETS[name].context, PAPER_SETS[name].append
        assert context / (context + append) == pytest.approx(hit, abs=0.001)


def test_sessions_share_nothing_and_nobody_waits_for_a_tool():
    streams = [session.rounds[0].append[0].stream for session in SETS["paper-32k"]]
    assert len(set(streams)) == len(streams)
    assert not any(each.tool_wait_s for session in SETS["paper-32k"] for each in session.rounds)


def test_a_seed_decides_everything():
    again, other = paperlike_sessions("paper-32k", 3, 50), paperlike_sessions("paper-32k", 4, 50)
    assert paperlike_sessions("paper-32k", 3, 50) == again != other

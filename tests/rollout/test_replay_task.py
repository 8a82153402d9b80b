"""Who replays what: the trace's sessions first, then ones that share nothing; cut, windowed, arriving."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from rollout.replay_task import FIRST_ROUND_TOKENS, poisson_arrivals, replay_tasks
from rollout.replay_tokens import TokenSource
from rollout.traces.session import Piece, Round, Session, cut_at, window

NO_LIMIT = 10**9


def session(name: str, num_rounds: int, tokens: int = 100, output: int = 10) -> Session:
    rounds = (
        Round((Piece(f"{name}/appended", index * tokens, tokens),), output) for index in range(num_rounds)
    )
    return Session(name, tuple(rounds))


def tasks_of(sessions, num_agents=None, max_context_tokens=NO_LIMIT, trace_window=None, seed=0):
    return replay_tasks(
        sessions,
        num_agents=num_agents,
        max_context_tokens=max_context_tokens,
        trace_window=trace_window,
        seed=seed,
    )


def test_each_agent_has_a_session_and_fewer_agents_have_the_first_ones():
    sessions = [session(name, 3) for name in "abc"]
    assert [task.session for task in tasks_of(sessions)] == sessions
    assert [task.session for task in tasks_of(sessions, num_agents=2)] == sessions[:2]


def test_agents_beyond_the_sessions_replay_one_behind_a_round_of_their_own():
    sessions = [session(name, 3) for name in "ab"]
    tasks = tasks_of(sessions, num_agents=6)
    assert [task.session for task in tasks[:2]] == sessions
    firsts = set()
    for task in tasks[2:]:
        first, *rest = task.session.rounds
        assert (first.append_tokens, first.output_tokens) == (FIRST_ROUND_TOKENS, 1)
        assert tuple(rest) in [each.rounds for each in sessions]
        firsts.add(first.append)
    assert len(firsts) == 4
    assert len({task.task_id for task in tasks}) == 6


def test_agents_are_drawn_by_the_seed_alone():
    sessions = [session(name, 3) for name in "abcdef"]
    assert tasks_of(sessions, num_agents=30, seed=1) == tasks_of(sessions, num_agents=30, seed=1)
    assert tasks_of(sessions, num_agents=30, seed=1) != tasks_of(sessions, num_agents=30, seed=2)


def test_a_round_of_its_own_moves_what_a_later_round_keeps():
    dropping = Session("a", (*session("a", 2).rounds, Round((Piece("b", 0, 5),), 1, keep_tokens=50)))
    task = tasks_of([dropping], num_agents=2)[1]
    assert task.session.rounds[-1].keep_tokens == 50 + FIRST_ROUND_TOKENS + 1


def test_a_session_ends_before_the_round_that_would_not_fit():
    assert len(cut_at(session("a", 5), 330).rounds) == 3
    assert len(cut_at(session("a", 5), 329).rounds) == 2
    assert tasks_of([session("a", 5)], max_context_tokens=109) == []


@pytest.mark.parametrize(("num_rounds", "first"), [(1, 2), (2, 1), (3, 1), (5, 0), (9, 0)])
def test_a_window_is_the_middle_and_the_context_before_it_is_history(num_rounds, first):
    whole = session("a", 5)
    cut = window(whole, num_rounds)
    assert cut.rounds == whole.rounds[first : first + num_rounds]
    assert cut.history_tokens == first * 110
    assert [prompt for prompt, _ in cut.prompts()] == [prompt for prompt, _ in whole.prompts()][
        first : first + num_rounds
    ]


def test_history_leaves_out_what_the_agent_dropped():
    dropping = (*session("a", 2).rounds, Round((), 1, keep_tokens=50))
    cut = window(Session("a", (*dropping, *session("c", 4).rounds)), 1)
    assert cut.rounds == session("c", 4).rounds[:1]
    assert cut.history == (Piece("a/appended", 0, 50), Piece("a/generated/2", 0, 1))


def test_arrivals_are_random_by_the_seed_and_as_many_a_second_as_asked():
    tasks = tasks_of([session("a", 1)], num_agents=4000)
    arriving = poisson_arrivals(tasks, agents_per_s=8.0, seed=3)
    at_s = [task.start_after_s for task in arriving]
    gaps_s = [after - before for before, after in pairwise(at_s)]
    assert at_s[0] == 0
    assert min(gaps_s) >= 0
    assert statistics.mean(gaps_s) == pytest.approx(1 / 8, rel=0.1)
    assert statistics.stdev(gaps_s) == pytest.approx(1 / 8, rel=0.1)
    assert arriving == poisson_arrivals(tasks, agents_per_s=8.0, seed=3)
    assert [task.session for task in arriving] == [task.session for task in tasks]


def test_equal_pieces_are_equal_tokens_and_a_piece_is_the_same_in_parts():
    tokens = TokenSource(range(100, 356))
    whole = tokens.spell([Piece("a", 10, 50)])
    assert whole == tokens.spell([Piece("a", 10, 20), Piece("a", 30, 30)])
    assert whole != tokens.spell([Piece("b", 10, 50)])
    assert set(tokens.spell([Piece("a", 0, 20_000)])) == set(range(100, 356))

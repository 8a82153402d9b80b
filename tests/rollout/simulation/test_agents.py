"""Sessions become agents that share columns, and the same work as a replay's tasks."""

from __future__ import annotations

from rollout.replay_task import deal, replay_tasks, whole_sessions
from rollout.simulation.agents import sim_agents
from rollout.traces.session import Piece, Round, Session

LONGEST = 1_000


def session(name: str, *appends: int, shared: int = 0) -> Session:
    first = (Piece("system", 0, shared),) if shared else ()
    rounds = [
        Round((*(first if not place else ()), Piece(name, place * 100, tokens)), 5, 2.0)
        for place, tokens in enumerate(appends)
    ]
    return Session(name, tuple(rounds))


def agents_of(sessions, num_agents, **options):
    whole = whole_sessions(sessions, LONGEST)
    return sim_agents(whole, deal(len(whole), num_agents, 0), max_context_tokens=LONGEST, **options)


def test_agents_do_what_a_replays_tasks_do():
    sessions = [session("a", 50, 30, 20), session("b", 40, 10), session("c", 2_000)]
    for window in (None, 1):
        tasks = replay_tasks(sessions, num_agents=7, max_context_tokens=LONGEST, trace_window=window, seed=0)
        agents = agents_of(sessions, 7, trace_window=window)
        assert len(tasks) == len(agents)
        for task, agent in zip(tasks, agents, strict=True):
            assert agent.history_tokens == task.session.history_tokens
            assert [prompt for prompt, _ in agent.prompts()] == [p for p, _ in task.session.prompts()]


def test_agents_of_one_session_share_its_columns():
    agents = agents_of([session("a", 50, 30)], 4)
    assert agents[1].rounds is agents[2].rounds is agents[3].rounds
    assert len(agents[0].rounds) == 2
    assert len(agents[1].rounds) == 3  # behind a round of its own


def test_waits_for_tools_are_scaled():
    (agent,) = agents_of([session("a", 50)], None, tool_wait_scale=0.5)
    assert agent.rounds.tool_wait_s.tolist() == [1.0]


def test_what_an_earlier_first_prompt_began_with_is_stored():
    agents = agents_of([session("a", 50, shared=70), session("b", 50, shared=60), session("c", 50)], None)
    assert [agent.shared_tokens for agent in agents] == [0, 60, 0]


def test_an_agent_of_a_session_that_is_played_already_shares_nothing():
    agents = agents_of([session("a", 50, shared=70)], 3)
    assert [agent.shared_tokens for agent in agents] == [0, 0, 0]

from __future__ import annotations

from pathlib import Path

from rollout.bench.workload import EqualAgents
from rollout.replay_task import ReplayTask, replay_tasks
from rollout.traces.load import load_sessions


def tasks_of(agents: EqualAgents, tmp_path: Path) -> list[ReplayTask]:
    agents.write(tmp_path / "trace.csv")
    return replay_tasks(
        load_sessions(str(tmp_path / "trace.csv")),
        num_agents=agents.agents,
        max_context_tokens=1 << 20,
        trace_window=agents.rounds,
        seed=0,
    )


def test_every_agent_has_the_same_context_before_and_the_same_rounds(tmp_path: Path) -> None:
    for task in tasks_of(EqualAgents(3, 4, 1_000, 100, 10), tmp_path):
        assert task.session.history_tokens == 1_000
        assert [(each.append_tokens, each.output_tokens) for each in task.session.rounds] == [(100, 10)] * 4


def test_agents_share_nothing(tmp_path: Path) -> None:
    first, second = (task.session for task in tasks_of(EqualAgents(2, 1, 64, 10, 1), tmp_path))
    assert {piece.stream for piece in first.history}.isdisjoint(piece.stream for piece in second.history)


def test_spread_contexts_lie_around_the_middle_and_differ(tmp_path: Path) -> None:
    agents = EqualAgents(20, 1, 10_000, 100, 10, spread_tokens=8_000)
    contexts = [task.session.history_tokens for task in tasks_of(agents, tmp_path)]
    assert len(set(contexts)) == 20
    assert min(contexts) >= 6_000
    assert max(contexts) <= 14_000
    assert abs(sum(contexts) / 20 - 10_000) < 500

"""What one replaying agent is told to do: its session, ready to play.

Deals sessions out to agents: the trace's own first, one each; agents beyond them replay one drawn at random
after a round of their own, so that nothing is shared (DualPath, arXiv 2602.21548, A.3). Pure but for what
it is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rollout.traces.session import Piece, Round, Session, cut_at, window, with_first_round

FIRST_ROUND_TOKENS = 64
"""Of the round that sets an agent beyond the trace apart; it generates one token."""


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """One agent of a replay."""

    task_id: str
    session: Session
    start_after_s: float = 0.0
    """When the agent arrives, after the replay starts."""


def replay_tasks(
    sessions: Sequence[Session],
    *,
    num_agents: int | None,
    max_context_tokens: int,
    trace_window: int | None,
    seed: int,
) -> list[ReplayTask]:
    """A task for each agent; None: as many as the trace has sessions.

    A session is cut where its context would not fit, and then to its window. Those of which nothing is left
    are left out; an empty list if none is.
    """
    whole = whole_sessions(sessions, max_context_tokens)
    tasks = []
    for index, dealt in enumerate(deal(len(whole), num_agents, seed)):
        session = whole[dealt] if index < len(whole) else another(whole[dealt], index, max_context_tokens)
        if trace_window is not None:
            session = window(session, trace_window)
        tasks.append(ReplayTask(session.session_id, session))
    return tasks


def whole_sessions(sessions: Sequence[Session], max_context_tokens: int) -> list[Session]:
    """Each session up to where its context would not fit; those of which nothing is left are left out."""
    return [cut for cut in (cut_at(session, max_context_tokens) for session in sessions) if cut.rounds]


def deal(num_sessions: int, num_agents: int | None, seed: int) -> list[int]:
    """The session of each agent: its own while there are any, then one drawn at random. None: one each."""
    if not num_sessions:
        return []
    rng = random.Random(f"{seed}/agents")
    own = num_sessions if num_agents is None else min(num_agents, num_sessions)
    more = 0 if num_agents is None else num_agents - own
    return [*range(own), *(rng.randrange(num_sessions) for _ in range(more))]


def poisson_arrivals(tasks: Sequence[ReplayTask], agents_per_s: float, seed: int) -> list[ReplayTask]:
    """The same agents, arriving at random at `agents_per_s` on average, the first one at once."""
    starts = arrival_times(len(tasks), agents_per_s, seed)
    return [replace(task, start_after_s=at_s) for task, at_s in zip(tasks, starts, strict=True)]


def arrival_times(num_agents: int, agents_per_s: float, seed: int) -> list[float]:
    """Seconds after the start at which each agent of a Poisson process arrives; the first one at 0."""
    rng, times_s = random.Random(f"{seed}/arrivals"), [0.0]
    for _ in range(num_agents - 1):
        times_s.append(times_s[-1] + rng.expovariate(agents_per_s))
    return times_s[:num_agents]


def another(drawn: Session, index: int, max_context_tokens: int) -> Session:
    """A session that was drawn, behind a round that only agent `index` has."""
    first = Round((Piece(f"agent-{index}/first", 0, FIRST_ROUND_TOKENS),), 1)
    return cut_at(with_first_round(drawn, first, f"+agent-{index}"), max_context_tokens)

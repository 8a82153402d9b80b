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
    whole = [cut for cut in (cut_at(session, max_context_tokens) for session in sessions) if cut.rounds]
    if not whole:
        return []
    rng = random.Random(f"{seed}/agents")
    tasks = []
    for index in range(len(whole) if num_agents is None else num_agents):
        session = whole[index] if index < len(whole) else _another(rng, whole, index, max_context_tokens)
        if trace_window is not None:
            session = window(session, trace_window)
        tasks.append(ReplayTask(session.session_id, session))
    return tasks


def poisson_arrivals(tasks: Sequence[ReplayTask], agents_per_s: float, seed: int) -> list[ReplayTask]:
    """The same agents, arriving at random at `agents_per_s` on average, the first one at once."""
    rng, at_s = random.Random(f"{seed}/arrivals"), 0.0
    arriving = []
    for task in tasks:
        arriving.append(replace(task, start_after_s=at_s))
        at_s += rng.expovariate(agents_per_s)
    return arriving


def _another(rng: random.Random, whole: Sequence[Session], index: int, max_context_tokens: int) -> Session:
    """A session drawn at random, behind a round that only agent `index` has."""
    first = Round((Piece(f"agent-{index}/first", 0, FIRST_ROUND_TOKENS),), 1)
    drawn = whole[rng.randrange(len(whole))]
    return cut_at(with_first_round(drawn, first, f"+agent-{index}"), max_context_tokens)

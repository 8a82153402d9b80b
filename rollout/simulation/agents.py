"""Makes the agents of a simulation out of sessions, as a replay deals them out.

Agents of one session share its columns, so 48,000 of them cost little more than their names. What their first
prompts share is found by the names of the streams they are pieces of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.sim.workload import KEEP_ALL, SimAgent, SimRounds
from rollout.replay_task import another
from rollout.traces.session import Piece, Session, window


def sim_agents(
    whole: Sequence[Session],
    dealt: Sequence[int],
    starts_s: Sequence[float] | None = None,
    *,
    max_context_tokens: int,
    trace_window: int | None = None,
    tool_wait_scale: float = 0.0,
) -> list[SimAgent]:
    """An agent for each session index in `dealt`, as replay_tasks() makes its tasks; `starts_s`: all at once.

    `whole` has sessions that fit; `tool_wait_scale` multiplies recorded waits.
    """
    known = _Known(max_context_tokens, trace_window, tool_wait_scale)
    first_prompts = _FirstPrompts()
    agents = []
    for index, place in enumerate(dealt):
        again = index >= len(whole)
        session, rounds = known.played(whole[place], index, again=again)
        agents.append(
            SimAgent(
                agent_id=f"{whole[place].session_id}+agent-{index}" if again else session.session_id,
                rounds=rounds,
                history_tokens=session.history_tokens,
                shared_tokens=0 if again else first_prompts.shared_by(session),
                start_s=0.0 if starts_s is None else starts_s[index],
                group=whole[place].session_id,
            )
        )
    return agents


def columns(session: Session, tool_wait_scale: float) -> SimRounds:
    """A session's rounds, counted."""
    rounds = session.rounds
    keep = [KEEP_ALL if each.keep_tokens is None else each.keep_tokens for each in rounds]
    return SimRounds(
        append_tokens=np.array([each.append_tokens for each in rounds], np.int32),
        output_tokens=np.array([each.output_tokens for each in rounds], np.int32),
        tool_wait_s=np.array([each.tool_wait_s * tool_wait_scale for each in rounds], np.float32),
        keep_tokens=np.array(keep, np.int32),
    )


class _Known:
    """Sessions that were counted before."""

    def __init__(self, max_context_tokens: int, trace_window: int | None, tool_wait_scale: float) -> None:
        self._max_context_tokens = max_context_tokens
        self._window = trace_window
        self._wait_scale = tool_wait_scale
        self._found: dict[tuple[str, bool], tuple[Session, SimRounds]] = {}

    def played(self, session: Session, index: int, *, again: bool) -> tuple[Session, SimRounds]:
        """What agent `index` replays of a session; `again`: behind a round of its own."""
        key = (session.session_id, again)
        if key not in self._found:
            played = another(session, index, self._max_context_tokens) if again else session
            if self._window is not None:
                played = window(played, self._window)
            self._found[key] = played, columns(played, self._wait_scale)
        played, rounds = self._found[key]
        return played, rounds


class _FirstPrompts:
    """How much of a first prompt an earlier agent's began with."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], int] = {}

    def shared_by(self, session: Session) -> int:
        """Leading tokens that were seen before; remembers the session's own."""
        pieces = session.history or session.rounds[0].append
        shared = 0 if session.history else self._seen_tokens(pieces)
        for piece in pieces:
            key = (piece.stream, piece.start)
            self._seen[key] = max(self._seen.get(key, 0), piece.tokens)
        return shared

    def _seen_tokens(self, pieces: Sequence[Piece]) -> int:
        shared = 0
        for piece in pieces:
            seen = min(self._seen.get((piece.stream, piece.start), 0), piece.tokens)
            shared += seen
            if seen < piece.tokens:
                break
        return shared

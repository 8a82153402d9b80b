"""Sessions with other lengths or waits than were recorded or made (DualPath, arXiv 2602.21548, section 7).

Pure, and deterministic: the same sessions give the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from rollout.traces.session import Piece, Round, Session, cut_at


def scaled(
    sessions: Sequence[Session], append: float, output: float, max_context_tokens: int
) -> list[Session]:
    """Rounds that append and generate so many times as much, cut where a context would not fit."""
    return [cut_at(_scaled(session, append, output), max_context_tokens) for session in sessions]


def with_tool_waits(sessions: Sequence[Session], mean_s: float) -> list[Session]:
    """Rounds followed by exponential waits of this mean; the last one's too."""
    waiting = []
    for session in sessions:
        rng = random.Random(f"{session.session_id}/waits")
        rounds = tuple(replace(each, tool_wait_s=rng.expovariate(1 / mean_s)) for each in session.rounds)
        waiting.append(replace(session, rounds=rounds))
    return waiting


def _scaled(session: Session, append: float, output: float) -> Session:
    """What is appended becomes one stream of the session's own; what a round keeps is kept in proportion."""
    start, rounds = 0, []
    before = after = session.history_tokens
    for prompt_tokens, each in session.prompts():
        tokens = round(append * each.append_tokens)
        keep = None
        if each.keep_tokens is not None:
            keep = round(after * each.keep_tokens / before) if before else 0
        piece = Piece(f"{session.session_id}/scaled", start, tokens)
        generated = max(round(output * each.output_tokens), 1)
        rounds.append(Round((piece,) if tokens else (), generated, each.tool_wait_s, keep_tokens=keep))
        start += tokens
        after = (after if keep is None else keep) + tokens + generated
        before = prompt_tokens + each.output_tokens
    return replace(session, rounds=tuple(rounds))

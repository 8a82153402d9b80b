"""The one form every trace format becomes: sessions of rounds, told in tokens.

A round keeps a part of the context so far, appends tokens and generates tokens. What is appended is named,
not spelled: a `Piece` is a stretch of an endless named stream of tokens, so two sessions whose trace says
that they share a block name the same stretch, and a store finds the hit by itself. How a stream's ids are
drawn is not known here.

Pure: no I/O. Counts are tokens, waits are seconds of the recorded run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, start + tokens) of the stream `stream`."""

    stream: str
    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """One model call of a session."""

    append: tuple[Piece, ...]
    """What its prompt has beyond the context it keeps."""
    output_tokens: int
    tool_wait_s: float = 0.0
    """Time until the next round, in which the agent's tools worked."""
    keep_tokens: int | None = None
    """Tokens kept of the context so far, where the agent dropped the rest; None: all."""

    @property
    def append_tokens(self) -> int:
        return num_tokens(self.append)

    def prompt_tokens(self, context_tokens: int) -> int:
        """Tokens of its prompt, after a context of so many."""
        kept = context_tokens if self.keep_tokens is None else self.keep_tokens
        return kept + self.append_tokens


@dataclass(frozen=True, slots=True)
class Session:
    """One recorded agent."""

    session_id: str
    rounds: tuple[Round, ...]
    history: tuple[Piece, ...] = ()
    """The context before the first round; its KV is in the store when the replay starts."""

    @property
    def history_tokens(self) -> int:
        return num_tokens(self.history)

    def prompts(self) -> Iterator[tuple[int, Round]]:
        """Each round with the tokens of its prompt."""
        context_tokens = self.history_tokens
        for each in self.rounds:
            prompt_tokens = each.prompt_tokens(context_tokens)
            yield prompt_tokens, each
            context_tokens = prompt_tokens + each.output_tokens

    @property
    def longest_context_tokens(self) -> int:
        return max((prompt + each.output_tokens for prompt, each in self.prompts()), default=0)


def num_tokens(pieces: Sequence[Piece]) -> int:
    return sum(piece.tokens for piece in pieces)


def first_tokens(pieces: Sequence[Piece], tokens: int) -> tuple[Piece, ...]:
    """The first `tokens` of them."""
    kept = []
    for piece in pieces:
        if tokens <= 0:
            break
        kept.append(replace(piece, tokens=min(piece.tokens, tokens)))
        tokens -= piece.tokens
    return tuple(kept)


def cut_at(session: Session, max_context_tokens: int) -> Session:
    """The rounds before the first whose context would be longer (MAL in DualPath, arXiv 2602.21548, A.3)."""
    kept = 0
    for prompt_tokens, each in session.prompts():
        if prompt_tokens + each.output_tokens > max_context_tokens:
            break
        kept += 1
    return replace(session, rounds=session.rounds[:kept])


def window(session: Session, num_rounds: int) -> Session:
    """`num_rounds` rounds from the middle; the context before them becomes the history."""
    first = max(0, (len(session.rounds) - num_rounds) // 2)
    return Session(
        session.session_id,
        session.rounds[first : first + num_rounds],
        _context_before(session, first),
    )


def with_first_round(session: Session, first: Round, suffix: str) -> Session:
    """The session after a round that nobody else has, so that it shares nothing (A.3)."""
    if session.history:
        raise ValueError("a first round is put before a whole session, not before a window of one")
    before = first.append_tokens + first.output_tokens
    rounds = tuple(
        each if each.keep_tokens is None else replace(each, keep_tokens=before + each.keep_tokens)
        for each in session.rounds
    )
    return Session(session.session_id + suffix, (first, *rounds))


def _context_before(session: Session, first: int) -> tuple[Piece, ...]:
    """The context at the end of round `first - 1`; what was generated is a stream of the session's own."""
    context = session.history
    for index, each in enumerate(session.rounds[:first]):
        if each.keep_tokens is not None:
            context = first_tokens(context, each.keep_tokens)
        generated = Piece(f"{session.session_id}/generated/{index}", 0, each.output_tokens)
        context = (*context, *each.append, generated)
    return context

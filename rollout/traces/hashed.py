"""Rounds out of requests whose prompts are told as hashed blocks, as WEKA, Mooncake and Bailian tell them.

A request names the blocks of its whole prompt; equal ids are equal content. So a token of the prompt is a
place in the stream of its ids' scope, and consecutive ids are one Piece. A request that goes on where the
one before ended keeps the whole context, what was generated included; one that dropped something keeps what
the two prompts share. Either way every prompt has the recorded length.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rollout.traces.session import Piece, Round

Run = tuple[int, int]
"""Consecutive hash ids: the first and how many."""


@dataclass(frozen=True, slots=True)
class HashedRequest:
    """One recorded model call."""

    at_s: float
    input_tokens: int
    output_tokens: int
    runs: tuple[Run, ...]
    """Hash ids of the prompt's blocks, in order; the last block may be left out or be a part."""


@dataclass(frozen=True, slots=True)
class HashScope:
    """Where hash ids mean the same."""

    name: str
    """Equal ids of scopes of one name are equal content."""
    block_tokens: int
    prefix: str | None = None
    """Name of a prefix that other scopes share though their ids differ."""
    prefix_tokens: int = 0


def runs_of(hash_ids: Sequence[int]) -> tuple[Run, ...]:
    """Ids as runs of consecutive ones."""
    runs: list[Run] = []
    if not hash_ids:
        return ()
    start = before = hash_ids[0]
    for hash_id in hash_ids[1:]:
        if hash_id != before + 1:
            runs.append((start, before - start + 1))
            start = hash_id
        before = hash_id
    runs.append((start, before - start + 1))
    return tuple(runs)


def num_blocks(runs: Sequence[Run]) -> int:
    return sum(count for _, count in runs)


def num_shared(first: Sequence[Run], second: Sequence[Run]) -> int:
    """Blocks that both begin with."""
    shared = place = 0
    for start, count in first:
        for other_start, other_count in _from_block(second, place):
            if other_start != start:
                return shared
            both = min(count, other_count)
            shared, place, start, count = shared + both, place + both, start + both, count - both
            if not count:
                break
        else:
            return shared
    return shared


def rounds_of(
    requests: Sequence[HashedRequest], waits_s: Sequence[float], scope: HashScope, session_id: str
) -> tuple[Round, ...]:
    """The rounds of one agent's requests; `waits_s[i]` lies between request i and the next."""
    rounds = []
    before: HashedRequest | None = None
    for index, (request, wait_s) in enumerate(zip(requests, waits_s, strict=True)):
        keep, start = _kept(before, request, scope.block_tokens)
        append = _pieces(request, start, scope, f"{session_id}/tail/{index}")
        rounds.append(Round(append, request.output_tokens, wait_s, keep))
        before = request
    return tuple(rounds)


def gaps_s(requests: Sequence[HashedRequest]) -> list[float]:
    """Time from each request to the next; a trace of arrivals tells no more. 0 after the last."""
    return [max(0.0, after.at_s - before.at_s) for before, after in pairwise(requests)] + [0.0]


def _kept(before: HashedRequest | None, request: HashedRequest, block_tokens: int) -> tuple[int | None, int]:
    """What the round keeps (None: all), and the place of its prompt's first token after that."""
    if before is None:
        return None, 0
    shared_tokens = num_shared(before.runs, request.runs) * block_tokens
    context_tokens = before.input_tokens + before.output_tokens
    if shared_tokens + block_tokens > before.input_tokens and request.input_tokens >= context_tokens:
        return None, context_tokens
    kept = min(shared_tokens, before.input_tokens, request.input_tokens)
    return kept, kept


def _pieces(request: HashedRequest, start: int, scope: HashScope, tail: str) -> tuple[Piece, ...]:
    """Tokens [start, input_tokens) of the prompt."""
    pieces = []
    for piece, place in _prompt(request, scope, tail):
        skipped = min(max(0, start - place), piece.tokens)
        if piece.tokens > skipped:
            pieces.append(Piece(piece.stream, piece.start + skipped, piece.tokens - skipped))
    return tuple(pieces)


def _prompt(request: HashedRequest, scope: HashScope, tail: str) -> Iterator[tuple[Piece, int]]:
    """The pieces of the whole prompt, each with its place."""
    place = 0
    if scope.prefix is not None:
        place = min(scope.prefix_tokens, request.input_tokens)
        yield Piece(scope.prefix, 0, place), 0
    block = 0
    for first, count in request.runs:
        start, end = block * scope.block_tokens, (block + count) * scope.block_tokens
        block += count
        begin, stop = max(start, place), min(end, request.input_tokens)
        if stop > begin:
            yield Piece(scope.name, first * scope.block_tokens + begin - start, stop - begin), begin
            place = stop
    if request.input_tokens > place:
        yield Piece(tail, 0, request.input_tokens - place), place


def _from_block(runs: Sequence[Run], block: int) -> Iterator[Run]:
    """The runs from block number `block` on."""
    for start, count in runs:
        if block < count:
            yield start + block, count - block
        block = max(0, block - count)

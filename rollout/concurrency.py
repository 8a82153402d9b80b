"""How many agents may be at work at once, from how much of their KV is still there when they come back.

Agents keep their KV in the store between turns. When there are more of them than it holds, blocks are evicted
before their agent comes back, are computed again, and evict others. What tells of it is what was lost: tokens
of an agent's own context that were stored and were no hit at its next turn. While too much is lost the limit
falls by a quarter at every look; while nothing is lost and the limit binds it grows by an eighth. Who is at
work stays at work: a lower limit is reached as agents end.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

LOST_SHARE = 0.1
"""More of what was to be hit may not be lost."""
_FEW_TOKENS = 1000
"""Fewer that were to be hit say nothing."""
_CUT, _GROWTH = 0.75, 1.125


@dataclass(frozen=True, slots=True)
class HitCounts:
    """Since the start."""

    expected_tokens: int
    """Whole blocks of the agents' own contexts, at turns after their first."""
    lost_tokens: int
    """Those of them that were no hit."""


class ConcurrencyPolicy:
    """One for all steps of a job."""

    def __init__(self, first_limit: int | None) -> None:
        """`first_limit`: agents whose whole contexts the store holds; None: as many as there are."""
        self._limit = first_limit
        self._seen = HitCounts(0, 0)

    def limit(self, counts: HitCounts, num_running: int) -> int | None:
        """Most agents at work from now on; None: all."""
        expected_tokens = counts.expected_tokens - self._seen.expected_tokens
        if expected_tokens < _FEW_TOKENS:
            return self._limit
        lost_share = (counts.lost_tokens - self._seen.lost_tokens) / expected_tokens
        self._seen = counts
        if lost_share > LOST_SHARE:
            # Not from the limit: below it there may be fewer who already are too many.
            at_most = num_running if self._limit is None else min(num_running, self._limit)
            self._limit = max(1, int(at_most * _CUT))
        elif lost_share == 0 and self._limit is not None and num_running >= self._limit:
            self._limit = max(self._limit + 1, int(self._limit * _GROWTH))
        return self._limit


def first_limit(capacity_bytes: int | None, token_bytes: int, max_context_tokens: int) -> int | None:
    """Agents whose contexts fit the store at their longest; None where its capacity is not given."""
    if capacity_bytes is None:
        return None
    return max(1, capacity_bytes // (token_bytes * max_context_tokens))

"""Which waiting prompts run in one prefill forward.

Pure policy. Rows are padded to the longest new part, so a batch costs rows x longest. Rows are looked at in
FIFO order; one that would push the padded cost over the limit, or make over MAX_WASTE of it padding, waits
for a later batch. The head always runs, so nobody starves, and alone if it exceeds the limit by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_WASTE = 0.5
"""Largest share of a batch's padded tokens that may be padding."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt whose hit blocks have arrived."""

    hit_tokens: int
    new_tokens: int


def pick_batch(waiting: Sequence[Waiting], *, limit_tokens: int, padding_exact: bool) -> tuple[int, ...]:
    """Indices into `waiting` (in arrival order) of the rows to run now; the first is always among them."""
    if not waiting:
        return ()
    head = waiting[0]
    picked = [0]
    longest = total = head.new_tokens
    for index, row in enumerate(waiting[1:], start=1):
        if not padding_exact and row != head:
            continue
        new_longest = max(longest, row.new_tokens)
        padded = new_longest * (len(picked) + 1)
        if padded > limit_tokens:
            continue
        if padded - (total + row.new_tokens) > MAX_WASTE * padded:
            continue
        picked.append(index)
        longest, total = new_longest, total + row.new_tokens
    return tuple(picked)

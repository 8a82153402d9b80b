"""Which waiting prompts run in one prefill forward of a runner that pads.

Pure policy. Rows are padded to the longest, so a batch costs rows x longest, in tokens and in attention. Rows
are looked at in FIFO order; one that would push the padded cost over the token limit, or make over MAX_WASTE
of it padding, waits for a later batch. The first one that would exceed the quota is cut as in
engines.scheduling.prefill_quota, and nothing behind it runs. The head always runs, so nobody starves; if it
exceeds a bound by itself it is cut, and runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.scheduling.estimate import PromptWork, TimeEstimate
from engines.scheduling.prefill_quota import Chunk, PromptRest, Quota, most_tokens

MAX_WASTE = 0.5
"""Largest share of a batch's padded tokens that may be padding."""


@dataclass(frozen=True, slots=True)
class _Padded:
    """A batch's padded shape."""

    num_rows: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    total_new_tokens: int = 0
    """Without padding."""

    def with_row(self, cached_tokens: int, new_tokens: int) -> _Padded:
        return _Padded(
            self.num_rows + 1,
            max(self.cached_tokens, cached_tokens),
            max(self.new_tokens, new_tokens),
            self.total_new_tokens + new_tokens,
        )

    @property
    def padded_tokens(self) -> int:
        return self.num_rows * self.new_tokens

    @property
    def is_mostly_padding(self) -> bool:
        return self.padded_tokens - self.total_new_tokens > MAX_WASTE * self.padded_tokens

    def work(self) -> PromptWork:
        return PromptWork.of(self.cached_tokens, self.new_tokens).times(self.num_rows)


def padded_work(rows: Sequence[PromptRest]) -> PromptWork:
    """What one forward over these rows computes, padding and all."""
    batch = _Padded()
    for row in rows:
        batch = batch.with_row(row.cached_tokens, row.new_tokens)
    return batch.work()


def pick_padded_chunks(
    waiting: Sequence[PromptRest], estimate: TimeEstimate, quota: Quota, *, padding_exact: bool
) -> tuple[Chunk, ...]:
    """The batch to run now, in order of arrival; empty only if nobody waits.

    Without `padding_exact` only rows with the head's lengths join it, and only whole.
    """
    if not waiting:
        return ()
    head = waiting[0]
    new_tokens = _most_tokens(_Padded(), head, estimate, quota) or min(head.new_tokens, quota.block_tokens)
    chunks = [Chunk(0, new_tokens)]
    if new_tokens < head.new_tokens:
        return tuple(chunks)
    batch = _Padded().with_row(head.cached_tokens, new_tokens)
    for index, row in enumerate(waiting[1:], start=1):
        whole = batch.with_row(row.cached_tokens, row.new_tokens)
        if not padding_exact and row != head:
            continue
        if whole.padded_tokens > quota.limit_tokens or whole.is_mostly_padding:
            continue
        if quota.admits(whole.work(), estimate):
            chunks.append(Chunk(index, row.new_tokens))
            batch = whole
            continue
        new_tokens = _most_tokens(batch, row, estimate, quota) if padding_exact else 0
        if new_tokens and not batch.with_row(row.cached_tokens, new_tokens).is_mostly_padding:
            chunks.append(Chunk(index, new_tokens))
        break
    return tuple(chunks)


def _most_tokens(batch: _Padded, row: PromptRest, estimate: TimeEstimate, quota: Quota) -> int:
    def fits(new_tokens: int) -> bool:
        return quota.admits(batch.with_row(row.cached_tokens, new_tokens).work(), estimate)

    return most_tokens(row.new_tokens, quota.block_tokens, fits)

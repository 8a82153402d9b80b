"""Which waiting prompts, and how much of the last one, run in one prefill forward.

Pure policy, DualPath (arXiv 2602.21548, section 6.2). First come, first in, as long as the predicted
attention time of all (cached, new) pairs stays within the quota; the first prompt that would exceed it is
cut, by binary search, to the most whole blocks that do not, and nothing behind it runs. So the engines of a
group, which wait for their slowest in every layer, finish their attention together. The head always runs, one
block of it at least. The paper does not say whether its quota of 300 ms is a layer's or a whole forward's:
`quota_s` bounds what `estimate` predicts times `num_layers`, which is 1 for the first reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.scheduling.estimate import PromptWork, TimeEstimate


@dataclass(frozen=True, slots=True)
class PromptRest:
    """What is left of a waiting prompt."""

    cached_tokens: int
    """Hits, and chunks computed before. Whole blocks."""
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A prompt's part of a batch."""

    index: int
    """Into the waiting prompts."""
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Quota:
    """How much one forward may take in."""

    attention_s: float
    num_layers: int
    """Layers whose attention the quota bounds together: 1, or all of the model."""
    limit_tokens: int
    """Most new tokens, for memory."""
    limit_kv_tokens: float
    """Most tokens, cached and new, whose KV is in HBM at once; infinite where one layer's is."""
    block_tokens: int

    def admits(self, work: PromptWork, estimate: TimeEstimate) -> bool:
        """Whether one forward may take in `work`."""
        attention_s = estimate.predict_s(work) * self.num_layers
        within = work.new_tokens <= self.limit_tokens and work.kv_tokens <= self.limit_kv_tokens
        return within and attention_s <= self.attention_s


def pick_chunks(waiting: Sequence[PromptRest], estimate: TimeEstimate, quota: Quota) -> tuple[Chunk, ...]:
    """The batch to run now, in order of arrival; empty only if nobody waits."""
    chunks: list[Chunk] = []
    work = PromptWork()
    for index, prompt in enumerate(waiting):
        new_tokens = _most_tokens(prompt, work, estimate, quota)
        if not new_tokens and not chunks:
            new_tokens = min(prompt.new_tokens, quota.block_tokens)
        if new_tokens:
            chunks.append(Chunk(index, new_tokens))
            work += PromptWork.of(prompt.cached_tokens, new_tokens)
        if new_tokens < prompt.new_tokens:
            break
    return tuple(chunks)


def _most_tokens(prompt: PromptRest, work: PromptWork, estimate: TimeEstimate, quota: Quota) -> int:
    """New tokens of `prompt` that still fit beside `work`: all of them, or whole blocks."""

    def fits(new_tokens: int) -> bool:
        return quota.admits(work + PromptWork.of(prompt.cached_tokens, new_tokens), estimate)

    return most_tokens(prompt.new_tokens, quota.block_tokens, fits)


def most_tokens(new_tokens: int, block_tokens: int, fits: Callable[[int], bool]) -> int:
    """All of `new_tokens`, or the most whole blocks of them, that still fit; 0 if not one block does."""
    if fits(new_tokens):
        return new_tokens
    low, high = 0, new_tokens // block_tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * block_tokens) else (low, middle - 1)
    return low * block_tokens

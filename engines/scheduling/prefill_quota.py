"""Which waiting prompts, and how much of the last one, run in one prefill forward.

Pure policy, DualPath (arXiv 2602.21548, section 6.2). First come, first in, as long as the predicted
attention time of all (cached, new) pairs stays within the quota; the first prompt that would exceed it is
cut, by binary search, to the most whole blocks that do not, and nothing behind it runs. So the engines of a
group, which wait for their slowest in every layer, finish their attention together. The head always runs, one
block of it at least. The paper does not say whether its quota of 300 ms is a layer's or a whole forward's:
`quota_s` bounds what `estimate` predicts times `num_layers`, which is 1 for the first reading.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    block_tokens: int


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
        together = work + PromptWork.of(prompt.cached_tokens, new_tokens)
        attention_s = estimate.predict_s(together) * quota.num_layers
        return together.new_tokens <= quota.limit_tokens and attention_s <= quota.attention_s

    if fits(prompt.new_tokens):
        return prompt.new_tokens
    low, high = 0, prompt.new_tokens // quota.block_tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * quota.block_tokens) else (low, middle - 1)
    return low * quota.block_tokens

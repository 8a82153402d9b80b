"""Blocks of a prompt as spans [start, end), and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engines.read_messages import BlockSpan


def spans_of(blocks: Iterable[int]) -> tuple[BlockSpan, ...]:
    """`blocks`, in the order given; those that follow one another make one span."""
    spans: list[BlockSpan] = []
    for block in blocks:
        if spans and spans[-1][1] == block:
            spans[-1] = spans[-1][0], block + 1
        else:
            spans.append((block, block + 1))
    return tuple(spans)


def blocks_of(spans: Iterable[BlockSpan]) -> Iterator[int]:
    """The blocks of `spans`, in their order."""
    for start, end in spans:
        yield from range(start, end)

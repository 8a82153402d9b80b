"""Blocks that a prefill node keeps in DRAM after it has read them: of each context its beginning.

The context used longest ago goes first, and of it the last blocks: its beginning is what later turns share.
"""

from __future__ import annotations

from collections import OrderedDict


class KeptBlocks:
    """One node's, counted by agent."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._kept: OrderedDict[int, int] = OrderedDict()
        self._held: dict[int, int] = {}
        self.num_blocks = 0

    def of(self, agent: int) -> int:
        """Leading blocks of the agent's context that are kept."""
        return self._kept.get(agent, 0)

    def keep(self, agent: int, blocks: int) -> None:
        """The agent's first `blocks` are in memory now, and were used last of all."""
        if not self._max_blocks:
            return
        before = self._kept.pop(agent, 0)
        kept = min(max(blocks, before), self._max_blocks)
        self._kept[agent] = kept
        self.num_blocks += kept - before
        while self.num_blocks > self._max_blocks:
            oldest, there = self._next_to_go()
            gone = min(there, self.num_blocks - self._max_blocks)
            self.num_blocks -= gone
            if gone == there:
                del self._kept[oldest]
            else:
                self._kept[oldest] = there - gone

    def forget(self, agent: int, blocks: int) -> None:
        """The agent's context goes on after its first `blocks` only."""
        before = self._kept.get(agent, 0)
        if before > blocks:
            self.num_blocks -= before - blocks
            if blocks:
                self._kept[agent] = blocks
            else:
                del self._kept[agent]

    @property
    def num_holdable(self) -> int:
        """Blocks that could be held beside those that are."""
        return self._max_blocks - sum(self._held.values())

    def hold(self, agent: int, blocks: int) -> None:
        """The agent's next turn will want its first `blocks`: they stay rather than others'."""
        self._held[agent] = blocks

    def let_go(self, agent: int) -> None:
        """What `hold` began is over."""
        self._held.pop(agent, None)

    def _next_to_go(self) -> tuple[int, int]:
        """An agent whose blocks nobody waits for, if there is one, and how many are kept of it."""
        others = ((agent, there) for agent, there in self._kept.items() if agent not in self._held)
        return next(others, None) or next(iter(self._kept.items()))

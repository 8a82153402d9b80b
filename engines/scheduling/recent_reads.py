"""What each node was given to read of late, which a queue that is short by now does not tell.

Pure policy, ours. Where NICs keep up, both queues are often empty, and choosing by them alone sends every tie
the same way: some storage NICs read half as much again as the mean. So reads planned lately count beside the
queue, fading with `memory_s`. 0 remembers nothing: the paper's rule (DualPath, arXiv 2602.21548, section
6.1).
"""

from __future__ import annotations

import math

from engines.types import NodeId


class RecentReads:
    """Tokens planned on each node, each weighing e^(-age / memory_s)."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._faded: dict[NodeId, tuple[float, float]] = {}

    def note(self, node_id: NodeId, tokens: float, now_s: float) -> None:
        """The node will read `tokens` more; fewer where reads move away."""
        if self._memory_s:
            self._faded[node_id] = (self.tokens(node_id, now_s) + tokens, now_s)

    def tokens(self, node_id: NodeId, now_s: float) -> float:
        """What was noted, as far as it is remembered; never below 0."""
        tokens, at_s = self._faded.get(node_id, (0.0, now_s))
        if now_s > at_s:
            tokens *= math.exp((at_s - now_s) / self._memory_s)
        return max(tokens, 0.0)

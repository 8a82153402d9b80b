"""A traffic manager that moves no KV and counts none: KV is free (engines.oracle). Collectives still cost.

The decode engine's copies go through it; a prefill batch has a NullFeed instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engines.traffic_manager import TrafficManager


class NullTraffic(TrafficManager):
    """Whatever was in the pool and in the slots stays there."""

    def load_blocks(self, pool: Tensor, blocks: Sequence[int], slots: Sequence[int]) -> None:
        pass

    def store_blocks(self, pool: Tensor, blocks: Sequence[int], slots: Sequence[int]) -> None:
        pass

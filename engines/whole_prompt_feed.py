"""Feeds one prefill batch without overlap: all layers of the hit before the first computes, all new KV after.

What layerwise prefill is measured against. Every layer has an HBM buffer of its own, so HBM bounds the batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from engines.batch_trace import BatchTrace
from engines.model.runner import BatchShape
from engines.prefill_feed import FeedRow, PrefillFeed
from engines.traffic_manager import TrafficManager


class WholePromptFeed(PrefillFeed):
    """A PrefillFeed with a buffer per layer."""

    def __init__(
        self,
        traffic: TrafficManager,
        buffers: Sequence[Tensor],
        shape: BatchShape,
        rows: Sequence[FeedRow],
        deadline_s: float,
        trace: BatchTrace | None = None,
    ) -> None:
        super().__init__(traffic, buffers, shape, rows, deadline_s, trace)
        self._computed: list[int] = []
        event = self._compute_event()
        for layer in range(1, len(buffers)):
            self._loads[layer] = self._thread.submit(self._load, layer, event)

    def load(self, layer: int) -> Tensor:
        if layer == 0:
            self._wait_for_all()
        return self._buffers[layer]

    def store(self, layer: int) -> None:
        self._computed.append(layer)

    def finish(self) -> None:
        for layer in self._computed:
            super().store(layer)
        super().finish()

    def _wait_for_all(self) -> None:
        for layer in sorted(self._loads):
            started_s = time.monotonic()
            fetched_s = self._result(self._loads.pop(layer))
            # Also on a GPU: nothing computes yet, so its waiting is the host's.
            self._waits.append((time.monotonic() - started_s, fetched_s))

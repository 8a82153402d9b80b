"""Draws one prefill batch on its engine's timeline: what each layer waits for, computes, loads and sends.

Lanes: `forward`, a span a batch; `compute`, its layers and what they wait for; `load`, hit KV into HBM;
`cnic`, a layer fetched from the decode node or sent to it. A GPU lags behind the host, whose time this is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from engines.model.runner import LayerFeed
from engines.timeline import Detail, Timeline

_WAITED_S = 1e-4


@dataclass(frozen=True, slots=True)
class BatchTrace:
    """The spans of one batch."""

    timeline: Timeline
    turns: str
    """Those of its turns that are sampled."""

    def add(self, lane: str, name: str, start_s: float, **details: Detail) -> None:
        """Something of the batch began at `start_s` (time.monotonic) and has ended now."""
        self.timeline.add(lane, name, start_s, turns=self.turns, **details)


class TracedFeed:
    """A LayerFeed around `feed`; what lies between a layer's load and its store is its compute."""

    def __init__(self, feed: LayerFeed, trace: BatchTrace) -> None:
        self._feed = feed
        self._trace = trace
        self._loaded_s = 0.0

    def load(self, layer: int) -> Tensor:
        asked_s = time.monotonic()
        buffer = self._feed.load(layer)
        if time.monotonic() - asked_s > _WAITED_S:
            self._trace.add("compute", f"wait for layer {layer}", asked_s)
        self._loaded_s = time.monotonic()
        return buffer

    def store(self, layer: int) -> None:
        self._trace.add("compute", f"layer {layer}", self._loaded_s)
        self._feed.store(layer)

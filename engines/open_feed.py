"""Opens the feed of one prefill batch: layer by layer, whole, or none that moves anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engines.batch_trace import BatchTrace
from engines.config import EnginesConfig
from engines.model.runner import BatchShape, LayerFeed, ModelRunner
from engines.null_feed import NullFeed
from engines.prefill_feed import FeedRow, PrefillFeed
from engines.traffic_manager import TrafficManager
from engines.whole_prompt_feed import WholePromptFeed


class BatchFeed(LayerFeed, Protocol):
    """A LayerFeed as the engine that opened it sees it. The figures hold after `finish`."""

    @property
    def peak_resident_layers(self) -> int:
        """Most layers of hit KV that were in HBM at once."""
        ...

    @property
    def load_wait_s(self) -> float:
        """Seconds the compute stood still for want of hit KV of the own node."""
        ...

    @property
    def fetch_wait_s(self) -> float:
        """Seconds the compute stood still for want of hit KV of another node."""
        ...

    @property
    def send_wait_s(self) -> float:
        """Seconds from the end of the compute to the end of the last send."""
        ...

    def new_checksums(self, index: int) -> Sequence[bytes]:
        """Of the blocks that this batch computed for a row, by decode slot."""
        ...

    def finish(self) -> None:
        """Wait until everything is sent; if something could not be, until nothing is on its way any more."""
        ...


def open_feed(
    traffic: TrafficManager,
    runner: ModelRunner,
    shape: BatchShape,
    rows: Sequence[FeedRow],
    config: EnginesConfig,
    trace: BatchTrace | None = None,
) -> BatchFeed:
    """The feed that the configuration asks for; it begins to load at once."""
    if config.oracle:
        return NullFeed(runner.new_buffer(shape), rows, runner.layout)
    if config.prefill_layerwise:
        buffers = [runner.new_buffer(shape) for _ in range(2)]
        return PrefillFeed(traffic, buffers, shape, rows, config.step_deadline_s, trace)
    buffers = [runner.new_buffer(shape) for _ in range(runner.layout.num_layers)]
    return WholePromptFeed(traffic, buffers, shape, rows, config.step_deadline_s, trace)

"""A feed that moves nothing: what a prefill takes when KV is free (engines.oracle).

The runner gets one buffer for all layers and finds nothing in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engines.prefill_feed import FeedRow
from kvstore.layout import BlockLayout


class NullFeed:
    """A LayerFeed without bytes."""

    peak_resident_layers = 0
    load_wait_s = 0.0
    fetch_wait_s = 0.0
    send_wait_s = 0.0

    def __init__(self, buffer: Tensor, rows: Sequence[FeedRow], layout: BlockLayout) -> None:
        self._buffer = buffer
        self._rows = rows
        self._layout = layout

    def load(self, layer: int) -> Tensor:
        return self._buffer

    def store(self, layer: int) -> None:
        pass

    def new_checksums(self, index: int) -> list[bytes]:
        row = self._rows[index]
        return [bytes(4 * self._layout.num_layers)] * (len(row.decode_slots) - len(row.hit_slots))

    def finish(self) -> None:
        pass

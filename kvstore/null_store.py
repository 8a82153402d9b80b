"""A BlockStore that keeps nothing: every write is done at once, and every read finds its block in the slot.

For runs that ask what storage costs, by having none (engines.oracle). Whoever looks at the bytes is deceived.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from kvstore.layout import BlockLayout
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockWrite, ReadStatus


class NullStore:
    """A store of no bytes."""

    def __init__(self, layout: BlockLayout) -> None:
        self._checksums = bytes(4 * layout.num_layers)
        self._block_bytes = layout.full_block_bytes
        self._offsets = itertools.count()

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        return [BlockReadResult(ReadStatus.OK, self._checksums)] * len(reads)

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        # As many bytes as a block would have: read plans share them out.
        return [
            BlockLocation("null.0.kv", next(self._offsets), nbytes=self._block_bytes, checksum=0)
            for _ in writes
        ]

    def close(self) -> None:
        pass

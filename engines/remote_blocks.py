"""Blocks of a hit that lie in another node's slots: where they are, and what a layer of them must sum to.

A layer of many blocks is fetched as one list and summed run by run, so what is compared is the CRC32C of a
whole run of the layer: it is combined, for all layers at once, from the sums that came with the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.checksum import Sums, combine_columns, layer_sums
from kvstore.layout import BlockLayout
from kvstore.transport import Offsets, RegionHandle


@dataclass(frozen=True, slots=True, eq=False)
class RemoteBlocks:
    """In block order."""

    region: RegionHandle
    runs: tuple[range, ...]
    """Their places in the hit, in runs of consecutive blocks."""
    blocks: Offsets
    """[blocks] their places in the hit."""
    slots: Offsets
    """[blocks] the other node's slots."""
    run_checksums: Sums
    """[runs, layers] CRC32C of a layer of all blocks of a run, back to back."""

    @classmethod
    def of(
        cls,
        layout: BlockLayout,
        region: RegionHandle,
        runs: Sequence[range],
        slots: Sequence[int],
        checksums: Sequence[bytes],
    ) -> RemoteBlocks:
        """`slots` and `checksums` (layer sums) are those of the whole hit, by place."""
        blocks = np.array([block for run in runs for block in run], np.int64)
        sums = [layer_sums(checksums[run.start : run.stop], layout.num_layers) for run in runs]
        combined = [combine_columns(of_run, layout.layer_block_bytes) for of_run in sums]
        there = np.array(slots, np.int64)[blocks]
        run_checksums = np.array(combined, np.uint32).reshape(len(runs), layout.num_layers)
        return cls(region, tuple(runs), blocks, there, run_checksums)

"""How much a benchmark moves. Values only; the code and the figures' names are the same for all sizes."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.layout import BlockLayout, KVFormat, KVGroup

KIB = 1 << 10
MIB = 1 << 20
BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class BenchSizes:
    """Bytes are of one side and one round."""

    rounds: int
    bytes_per_round: int
    large_block_bytes: tuple[int, ...]
    small_block_bytes: int
    num_layers: tuple[int, ...]
    index_blocks: int
    index_block_bytes: int
    openings: int
    lookups: int
    io_threads: int

    def disk_bytes(self) -> int:
        """Most bytes that lie on the disk at once: a store and the raw file, or two stores, with headers."""
        return self.bytes_per_round * 5 // 2 + self.index_blocks * 128 + 64 * MIB


FULL = BenchSizes(
    rounds=7,
    bytes_per_round=512 * MIB,
    large_block_bytes=(MIB, 2 * MIB, 4 * MIB),
    small_block_bytes=256 * KIB,
    num_layers=(8, 61),
    index_blocks=1_000_000,
    index_block_bytes=MIB,
    openings=3,
    lookups=1000,
    io_threads=4,
)
QUICK = BenchSizes(
    rounds=3,
    bytes_per_round=64 * MIB,
    large_block_bytes=(MIB, 4 * MIB),
    small_block_bytes=256 * KIB,
    num_layers=(8, 61),
    index_blocks=50_000,
    index_block_bytes=MIB,
    openings=1,
    lookups=100,
    io_threads=4,
)


def layout_of(block_bytes: int, num_layers: int) -> BlockLayout:
    """A layout whose slot is `block_bytes`, as nearly as whole tokens allow."""
    groups = (KVGroup("kv", block_bytes // num_layers // BLOCK_TOKENS),)
    return BlockLayout(KVFormat("bfloat16", num_layers, groups), BLOCK_TOKENS)

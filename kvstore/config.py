"""What a user may say about the KV store. Values live in conf/kvstore/; meaning and bounds live here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kvstore.layout import MAX_BLOCK_TOKENS
from kvstore.mooncake_config import MooncakeConfig


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The group `kvstore` of the configuration."""

    kind: Literal["ssd", "3fs", "mooncake"]
    """ssd: a directory of any POSIX file system, all nodes' own; on tmpfs it is a store in memory.
    3fs: the same files on a 3FS mount, read and written through USRBIO.
    mooncake: the DRAM that the nodes lend to a Mooncake cluster; `path` and what says something of files
    mean nothing then, and Mooncake's master evicts."""
    path: str | None
    """Directory of the store; null: a directory inside run_dir."""
    block_tokens: int
    """Tokens in a block. The tail that fills no block is computed again each turn."""
    staging_bytes: int
    """Bytes of DRAM that a node stages blocks in, on their way between SSD, network and HBM."""
    dram_bytes: int
    """Bytes of `staging_bytes` in which a prefill node may keep blocks it has read, so that the next turn
    need not read them again. Prompts take them back when they need room. 0: none."""
    io_threads: int
    """Threads of a node that read from the ssd store; half as many more write to it."""
    read_chunk_bytes: int
    """Bytes of neighbouring blocks that a node reads at a time. What has not begun can still be read on the
    other side."""
    read_depth: int
    """Chunks that a node reads at the same time, of all turns together."""
    read_report_s: float
    """Seconds between two reports of a node on what it still has to read."""
    deadline_s: float
    """Seconds after which a batch of block reads or writes is given up; what is late is a miss."""
    capacity_bytes: int | None
    """Most bytes the directory may hold, whoever wrote them. null: 80 % of what its file system has free,
    together with what the store holds already."""
    reserve_bytes: int | None
    """Bytes of the capacity that eviction keeps free, for what is written while it is at work. null: one
    segment for each writer and one more, at most half the capacity."""
    segment_bytes: int
    """Bytes after which a writer begins a new segment file. A segment is evicted as a whole."""
    pack_bytes: int
    """Small blocks that a turn generates are collected until they make this much, or the turn ends, and
    written at once. Bytes of the blocks; 1: each by itself."""
    durability: Literal["none", "data", "full"]
    """What a block must have survived before it is announced. none: a crash of its process; data: a power
    cut, for blocks in files whose names survive it; full: a power cut."""
    lease_ttl_s: float
    """Seconds of silence after which another job takes over eviction from the one that had it."""
    refresh_s: float
    """Seconds between two looks at the directory for what other jobs wrote there."""
    mooncake: MooncakeConfig | None
    """With kind mooncake only: the cluster."""

    def __post_init__(self) -> None:
        checks = (
            (self.kind in ("ssd", "3fs", "mooncake"), "kind", "ssd, 3fs or mooncake", self.kind),
            (
                (self.kind == "mooncake") == (self.mooncake is not None),
                "mooncake",
                f"{'given' if self.kind == 'mooncake' else 'null'} where kvstore.kind={self.kind}",
                self.mooncake,
            ),
            (self.path != "", "path", "a directory or null", self.path),
            (
                1 <= self.block_tokens <= MAX_BLOCK_TOKENS,
                "block_tokens",
                f"1..{MAX_BLOCK_TOKENS}",
                self.block_tokens,
            ),
            (self.staging_bytes >= 1, "staging_bytes", ">= 1", self.staging_bytes),
            (self.dram_bytes >= 0, "dram_bytes", ">= 0", self.dram_bytes),
            (
                self.dram_bytes <= self.staging_bytes // 2,
                "dram_bytes",
                f"at most half of kvstore.staging_bytes={self.staging_bytes}",
                self.dram_bytes,
            ),
            (1 <= self.io_threads <= 256, "io_threads", "1..256", self.io_threads),
            (1 <= self.read_chunk_bytes <= 1 << 40, "read_chunk_bytes", "1..2**40", self.read_chunk_bytes),
            (1 <= self.read_depth <= 256, "read_depth", "1..256", self.read_depth),
            (0 < self.read_report_s <= 60, "read_report_s", "above 0, at most 60", self.read_report_s),
            (0 < self.deadline_s <= 3600, "deadline_s", "above 0, at most 3600", self.deadline_s),
            (
                _at_least_or_null(1, self.capacity_bytes),
                "capacity_bytes",
                ">= 1, or null",
                self.capacity_bytes,
            ),
            (_at_least_or_null(0, self.reserve_bytes), "reserve_bytes", ">= 0, or null", self.reserve_bytes),
            (
                (self.reserve_bytes or 0) < (self.capacity_bytes or math.inf),
                "reserve_bytes",
                f"below kvstore.capacity_bytes={self.capacity_bytes}",
                self.reserve_bytes,
            ),
            (1 <= self.segment_bytes <= 1 << 40, "segment_bytes", "1..2**40", self.segment_bytes),
            (1 <= self.pack_bytes <= 1 << 30, "pack_bytes", "1..2**30", self.pack_bytes),
            (
                self.durability in ("none", "data", "full"),
                "durability",
                "none, data or full",
                self.durability,
            ),
            (0 < self.lease_ttl_s <= 3600, "lease_ttl_s", "above 0, at most 3600", self.lease_ttl_s),
            (0 < self.refresh_s <= 86400, "refresh_s", "above 0, at most 86400", self.refresh_s),
        )
        for ok, name, bounds, value in checks:
            if not ok:
                raise ValueError(f"kvstore.{name} must be {bounds}, got {value!r}")


def _at_least_or_null(minimum: int, value: int | None) -> bool:
    return value is None or value >= minimum

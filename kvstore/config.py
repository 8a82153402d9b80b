"""What a user may say about the KV store. Values live in conf/kvstore/; meaning and bounds live here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvstore.layout import MAX_BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The group `kvstore` of the configuration."""

    kind: Literal["ssd"]
    """ssd: a directory of any POSIX file system, all nodes' own; on tmpfs it is a store in memory."""
    path: str | None
    """Directory of the ssd store; null: a directory inside run_dir."""
    block_tokens: int
    """Tokens in a block. The tail that fills no block is computed again each turn."""
    staging_bytes: int
    """Bytes of DRAM that a node stages blocks in, on their way between SSD, network and HBM."""
    io_threads: int
    """Threads of a node that read from the ssd store; half as many more write to it."""
    deadline_s: float
    """Seconds after which a batch of block reads or writes is given up; what is late is a miss."""

    def __post_init__(self) -> None:
        checks = (
            (self.kind == "ssd", "kind", "ssd", self.kind),
            (self.path != "", "path", "a directory or null", self.path),
            (
                1 <= self.block_tokens <= MAX_BLOCK_TOKENS,
                "block_tokens",
                f"1..{MAX_BLOCK_TOKENS}",
                self.block_tokens,
            ),
            (self.staging_bytes >= 1, "staging_bytes", ">= 1", self.staging_bytes),
            (1 <= self.io_threads <= 256, "io_threads", "1..256", self.io_threads),
            (0 < self.deadline_s <= 3600, "deadline_s", "above 0, at most 3600", self.deadline_s),
        )
        for ok, name, bounds, value in checks:
            if not ok:
                raise ValueError(f"kvstore.{name} must be {bounds}, got {value!r}")

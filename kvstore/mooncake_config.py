"""What a user may say about Mooncake Store: the part `mooncake` of the group `kvstore`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class MooncakeConfig:
    """How a node joins a Mooncake cluster that runs already."""

    master: str
    """host:port of its `mooncake_master`."""
    protocol: Literal["tcp", "rdma"]
    """How blocks travel between the nodes."""
    devices: str
    """RDMA devices, separated by commas; empty with tcp."""
    memory_bytes: int
    """Bytes of DRAM that each node lends to the cluster; the blocks lie there."""

    def __post_init__(self) -> None:
        checks = (
            (_is_address(self.master), "master", "host:port", self.master),
            (self.protocol in ("tcp", "rdma"), "protocol", "tcp or rdma", self.protocol),
            (self.memory_bytes >= 1 << 24, "memory_bytes", f">= {1 << 24}", self.memory_bytes),
        )
        for ok, name, bounds, value in checks:
            if not ok:
                raise ValueError(f"kvstore.mooncake.{name} must be {bounds}, got {value!r}")

    @property
    def master_address(self) -> tuple[str, int]:
        host, _, port = self.master.rpartition(":")
        return host, int(port)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 1 <= int(port) <= 65535

"""What a user may say about the transport. Values live in conf/transport/; meaning and bounds live here."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """The group `transport` of the configuration."""

    kind: Literal["shm", "tcp"]
    """How KV moves between nodes. shm: shared memory of one host; tcp: connections, also between hosts."""
    listen: str
    """tcp: the one address of its host at which a node lets the job's engines reach its staging memory. An
    IP address, or a name that means another address on each host."""

    def __post_init__(self) -> None:
        if self.kind not in ("shm", "tcp"):
            raise ValueError(f"transport.kind must be shm or tcp, got {self.kind!r}")
        unspecified = not self.listen
        with suppress(ValueError):  # a name: what it means is known where a node listens
            unspecified = unspecified or ipaddress.ip_address(self.listen).is_unspecified
        if unspecified:
            raise ValueError(
                f"transport.listen must be one address of a node's host, for example 127.0.0.1, "
                f"got {self.listen!r}"
            )

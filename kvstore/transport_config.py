"""What a user may say about the transport. Values live in conf/transport/; meaning and bounds live here."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

TransportKind = Literal["auto", "shm", "tcp", "verbs", "nixl"]


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """The group `transport` of the configuration."""

    kind: TransportKind
    """How KV moves between nodes. shm: shared memory of one host; tcp: connections, also between hosts;
    verbs: RDMA; nixl: NVIDIA's NIXL with UCX, for fabrics without RC verbs; auto: the best that all of the
    job's hosts have, of the first three (kvstore.transport_choice)."""
    listen: str
    """tcp, verbs, nixl: the one address of its host at which a node lets the job's engines reach its staging
    memory (verbs: agree on queue pairs; nixl: learn of its agent). An IP address, a network interface such as
    eth0, or a name that means another address on each host."""
    device: str | None
    """verbs: the RDMA device, for example mlx5_0 (see `rdma link`). null: all of a host that
    are as good as the best, one for each engine in turn.
    nixl: what UCX calls the network devices to use (see `ucx_info -d`), for example rdmap16s27:1; null: the
    network interface that has the address of `listen`, by TCP, and memory shared within a host."""
    device_port: int | None
    """verbs: the port of the device, from 1. null: as with `device`."""
    gid_index: int | None
    """verbs: which of the port's addresses to use (see `rdma link` or `show_gids`). null: the one of an IPv4
    address by RoCE v2 if there is one."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(TransportKind):
            kinds = ", ".join(get_args(TransportKind))
            raise ValueError(f"transport.kind must be one of {kinds}; got {self.kind!r}")
        for name, least in (("device_port", 1), ("gid_index", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"transport.{name} must be >= {least} or null, got {value}")
        unspecified = not self.listen
        with suppress(ValueError):  # a name: what it means is known where a node listens
            unspecified = unspecified or ipaddress.ip_address(self.listen).is_unspecified
        if unspecified:
            raise ValueError(
                f"transport.listen must be one address of a node's host, for example 127.0.0.1, "
                f"got {self.listen!r}"
            )

    @property
    def listens_on_loopback(self) -> bool:
        """Can a node be reached from its own host only?"""
        if self.listen in ("localhost", "lo"):
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(self.listen).is_loopback
        return False

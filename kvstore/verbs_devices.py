"""Which RDMA devices this machine has, and which of their ports and GIDs to use.

Decides the choice; `choose` is pure. Where pyverbs is not installed, the kernel has no RDMA, or there is no
device, there are no ports, and `why_none` says which of these it is.

Of the GIDs of an Ethernet port the best are those of RoCE v2, which routers forward, and of these the one of
an IPv4 address, which stays for as long as the address is configured. Of ports with equally good addresses
the fastest is the best, and all that are like it in link and rate are a host's rails: as networks of GPU
nodes are wired, rail i of one host reaches rail i of another by one switch.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from kvstore.errors import TransportUnavailable


class Link(Enum):
    """What a port is wired to; both ends of a connection must have the same."""

    INFINIBAND = 1
    ETHERNET = 2


@dataclass(frozen=True, slots=True)
class PortGid:
    """An address of a port."""

    index: int
    gid: str
    """Eight groups of four hexadecimal digits."""
    kind: str
    """IB, RoCE v1 or RoCE v2."""

    @property
    def ipv4(self) -> str | None:
        """The IPv4 address that it stands for, if it does."""
        mapped = ipaddress.IPv6Address(self.gid).ipv4_mapped
        return None if mapped is None else str(mapped)

    @property
    def is_link_local(self) -> bool:
        return ipaddress.IPv6Address(self.gid).is_link_local


@dataclass(frozen=True, slots=True)
class VerbsPort:
    """A port of an RDMA device."""

    device: str
    port: int
    link: Link
    is_active: bool
    mtu_bytes: int
    gbits_per_s: int
    """0 where the kernel does not tell."""
    gids: tuple[PortGid, ...]
    """In the order of their indices; none of them is empty."""

    def __str__(self) -> str:
        return f"{self.device}:{self.port}"

    def gid(self, index: int) -> PortGid | None:
        return next((gid for gid in self.gids if gid.index == index), None)


@dataclass(frozen=True, slots=True)
class VerbsPorts:
    """What was found."""

    ports: tuple[VerbsPort, ...]
    why_none: str | None
    """Why there are no ports; None if there are some."""


@dataclass(frozen=True, slots=True)
class PortChoice:
    """A port and the address it is used by."""

    port: VerbsPort
    gid: PortGid


def find_ports() -> VerbsPorts:
    """All ports of all devices of this machine. Never raises for want of RDMA."""
    try:
        from kvstore import verbs_ports  # pyverbs is not on every machine
    except ImportError as error:
        return VerbsPorts((), f"pyverbs cannot be imported ({error}); Debian and Ubuntu: python3-pyverbs")
    return verbs_ports.list_ports()


def choose_port(found: VerbsPorts, device: str | None, port: int | None, gid_index: int | None) -> PortChoice:
    """The port and GID that are asked for; None: the best there is. Raises TransportUnavailable."""
    return choose_rails(found, device, port, gid_index)[0]


def choose_rails(
    found: VerbsPorts, device: str | None, port: int | None, gid_index: int | None
) -> tuple[PortChoice, ...]:
    """The best port, and all others as good of those that are asked for, in the order of their names.

    Raises TransportUnavailable.
    """
    if found.why_none is not None:
        raise TransportUnavailable(f"transport=verbs needs an RDMA device: {found.why_none}")
    ports = [each for each in found.ports if device in (None, each.device) and port in (None, each.port)]
    if not ports:
        wanted = f"transport.device={device}, transport.device_port={port}"
        raise TransportUnavailable(f"there is no RDMA port with {wanted}; there are {_named(found.ports)}")
    active = [each for each in ports if each.is_active]
    if not active:
        raise TransportUnavailable(f"no RDMA port is active of {_named(ports)}; see `rdma link`")
    choices = [PortChoice(each, gid) for each in active if (gid := _choose_gid(each, gid_index)) is not None]
    if not choices:
        raise TransportUnavailable(
            f"no active RDMA port of {_named(active)} has "
            + ("a GID" if gid_index is None else f"transport.gid_index={gid_index}")
        )
    best = min(choices, key=_worth)
    return tuple(each for each in choices if (_worth(each), each.port.link) == (_worth(best), best.port.link))


def _worth(choice: PortChoice) -> tuple[tuple[bool, bool, bool], int]:
    """Less is better."""
    return _rank(choice.gid), -choice.port.gbits_per_s


def _choose_gid(port: VerbsPort, gid_index: int | None) -> PortGid | None:
    if gid_index is not None:
        return port.gid(gid_index)
    return min(port.gids, key=_rank, default=None)


def _rank(gid: PortGid) -> tuple[bool, bool, bool]:
    """Less is better; of equals the first. All GIDs of InfiniBand are alike."""
    if gid.kind == "IB":
        return (False, False, False)
    return (gid.kind != "RoCE v2", gid.ipv4 is None, gid.is_link_local)


def _named(ports: Sequence[VerbsPort]) -> str:
    return ", ".join(
        f"{port} ({'active' if port.is_active else 'down'}; GIDs {[gid.index for gid in port.gids]})"
        for port in ports
    )

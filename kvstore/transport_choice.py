"""Which transport a job uses where its configuration leaves it open (`transport=auto`).

Pure: the hosts have been looked at (kvstore.host_facts). The choice is made once, for all processes of a job.

    verbs   every host has an RDMA device that can be used
    shm     else, if all nodes can map each other's memory
    tcp     else
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvstore.errors import TransportUnavailable
from kvstore.host_facts import HostFacts
from kvstore.transport_config import TransportConfig, TransportKind


@dataclass(frozen=True, slots=True)
class TransportChoice:
    """What every process of the job opens."""

    config: TransportConfig
    """Of a kind that can be opened, never `auto`."""
    told: str
    """The kind and the reason for it, in one line."""


def choose_transport(config: TransportConfig, hosts: Sequence[HostFacts]) -> TransportChoice:
    """`hosts`: those of the job's nodes, each as often as it has nodes.

    Raises TransportUnavailable where what the configuration wants cannot work on them.
    """
    assert hosts
    names = list(dict.fromkeys(host.name for host in hosts))
    one_memory = len({host.memory_domain for host in hosts}) == 1
    kind: TransportKind
    if config.kind != "auto":
        kind, why = config.kind, "as configured"
        if kind == "nixl":
            why += "; it has no traffic class per flow, so KV is marked like MODEL"
    elif all(host.rdma for host in hosts):
        kind, why = "verbs", f"RDMA on {_each(hosts)}"
    else:
        without = next(host for host in hosts if not host.rdma)
        lacking = f"no RDMA on {without.name} ({without.no_rdma})"
        where = "all nodes on one host" if one_memory else f"nodes on {len(set(names))} hosts"
        kind, why = ("shm" if one_memory else "tcp"), f"{lacking}; {where}"
    if kind == "shm" and not one_memory:
        raise TransportUnavailable(
            f"transport=shm needs all nodes on one host, they are on {', '.join(names)}; use transport=auto"
        )
    if kind != "shm" and not one_memory and config.listens_on_loopback:
        raise TransportUnavailable(
            f"the nodes are on {', '.join(names)}, and at transport.listen={config.listen} a host is reached "
            "from within only; give an interface that every host has, such as transport.listen=eth0"
        )
    return TransportChoice(replace(config, kind=kind), f"transport: {kind} ({why})")


def _each(hosts: Sequence[HostFacts]) -> str:
    """The hosts' devices, each said once."""
    return ", ".join(dict.fromkeys(f"{host.name}: {host.rdma}" for host in hosts))

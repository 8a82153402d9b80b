"""What a host can do for transfers: whose memory can be mapped there, and whether verbs can be used."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import TransportUnavailable
from kvstore.transport_config import TransportConfig
from kvstore.verbs_devices import choose_rails, find_ports

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host, or one container of it; picklable."""

    name: str
    memory_domain: str
    """Processes of which this is equal can map each other's memory: they run under one kernel, and see each
    other in /proc."""
    rdma: str | None
    """The RDMA ports and addresses that verbs would use; None: there is none to be used."""
    no_rdma: str
    """Why there is none; empty where there is one."""


def host_facts(config: TransportConfig) -> HostFacts:
    """Of the host that this process runs on; `config` may name the device."""
    boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else socket.gethostname()
    domain = f"{boot_id}:{os.readlink(_PROCESSES)}"
    found = find_ports()
    try:
        rails = choose_rails(found, config.device, config.device_port, config.gid_index)
    except TransportUnavailable as error:
        return HostFacts(socket.gethostname(), domain, None, found.why_none or str(error))
    rdma = "; ".join(f"{rail.port}, GID {rail.gid.index}, {rail.gid.kind}" for rail in rails)
    return HostFacts(socket.gethostname(), domain, rdma, "")

"""Lists the ports of this machine's RDMA devices, by asking pyverbs. See kvstore.verbs_devices."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

from kvstore.verbs_devices import Link, PortGid, VerbsPort, VerbsPorts
from kvstore.verbs_library import Context, PyverbsRDMAError, enums, get_device_list

DEVICES = Path("/sys/class/infiniband")
_MAX_GIDS = 1024
"""Asked for, of all ports of a device."""


def list_ports() -> VerbsPorts:
    try:
        names = [_text(device.name) for device in get_device_list()]
    except PyverbsRDMAError as error:
        return VerbsPorts((), f"the kernel has no RDMA or does not show it here ({error})")
    if not names:
        return VerbsPorts((), "this machine has no RDMA device")
    ports: list[VerbsPort] = []
    failures: list[str] = []
    for name in sorted(names):
        try:
            ports += _ports_of(name)
        except PyverbsRDMAError as error:
            failures.append(f"{name} cannot be opened ({error})")
    return VerbsPorts(tuple(ports), None if ports else "; ".join(failures) or "no device has a port")


def _ports_of(name: str) -> list[VerbsPort]:
    with Context(name=name) as context:
        entries = context.query_gid_table(_MAX_GIDS)
        num_ports = context.query_device().phys_port_cnt
        return [_port(context, name, port, entries) for port in range(1, num_ports + 1)]


def _port(context: Any, name: str, port: int, entries: list[Any]) -> VerbsPort:
    found = context.query_port(port)
    gids = [
        PortGid(entry.gid_index, gid, _kind(entry.gid_type))
        for entry in entries
        if entry.port_num == port and int(ipaddress.IPv6Address(gid := entry.gid_str()))
    ]
    ethernet = found.link_layer == enums.IBV_LINK_LAYER_ETHERNET
    return VerbsPort(
        device=name,
        port=port,
        link=Link.ETHERNET if ethernet else Link.INFINIBAND,
        is_active=found.state == enums.IBV_PORT_ACTIVE,
        mtu_bytes=128 << found.active_mtu,
        gbits_per_s=_gbits_per_s(name, port),
        gids=tuple(sorted(gids, key=lambda gid: gid.index)),
    )


def _gbits_per_s(device: str, port: int) -> int:
    """As the kernel writes it, for example `400 Gb/sec (4X NDR)`."""
    rate = DEVICES / device / "ports" / str(port) / "rate"
    found = re.match(r"(\d+)", rate.read_text()) if rate.is_file() else None
    return int(found[1]) if found else 0


def _kind(gid_type: int) -> str:
    return {
        enums.IBV_GID_TYPE_IB: "IB",
        enums.IBV_GID_TYPE_ROCE_V1: "RoCE v1",
        enums.IBV_GID_TYPE_ROCE_V2: "RoCE v2",
    }.get(gid_type, f"type {gid_type}")


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name

"""RDMA: ports and addresses, and whether the verbs transport carries bytes and traffic classes over them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvstore.errors import KvStoreError
from kvstore.host_facts import host_facts
from kvstore.job_token import JobToken
from kvstore.layout import BlockLayout, KVFormat, KVGroup
from kvstore.open_transport import TransportSpec, open_region_server, open_transport
from kvstore.probes.finding import Finding, Verdict
from kvstore.staging import StagingMemory
from kvstore.traffic import CLASS_TABLE, TrafficClass
from kvstore.transport import TransferList
from kvstore.transport_config import TransportConfig
from kvstore.verbs_devices import VerbsPort, find_ports

DEVICES = Path("/sys/class/infiniband")
_ROUND_TRIP_BYTES = 1 << 16
_DEADLINE_S = 3.0


def kernel_devices(folder: Path = DEVICES) -> list[str]:
    """RDMA devices that the kernel has drivers for, whoever may use them."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def probe_rdma(config: TransportConfig) -> Sequence[Finding]:
    """What is there, and a block written and read back through it in every class."""
    lacking = Verdict.FAIL if config.kind == "verbs" else Verdict.WARN
    devices, facts = kernel_devices(), host_facts(config)
    if not devices and not facts.rdma:
        advice = "fine on one host; between hosts KV then goes over TCP, at the cost of processor time"
        return [Finding("RDMA", lacking, f"no device ({facts.no_rdma})", advice)]
    if not facts.rdma:
        told = f"the kernel has {', '.join(devices)}, and verbs cannot be used: {facts.no_rdma}"
        return [Finding("RDMA", lacking, told, "docs/network.md says what verbs need")]
    ports = find_ports().ports
    gids = [f"{port} {gid.index}: {gid.ipv4 or gid.gid} ({gid.kind})" for port in ports for gid in port.gids]
    told = f"{'; '.join(map(_described, ports))}; verbs use {facts.rdma}"
    return [
        Finding("RDMA", Verdict.OK, told),
        Finding("RDMA GIDs", Verdict.OK, "; ".join(gids)),
        _round_trip(config),
    ]


def _described(port: VerbsPort, folder: Path = DEVICES) -> str:
    rate = folder / port.device / "ports" / str(port.port) / "rate"
    parts = [str(port), "active" if port.is_active else "down", port.link.name, f"MTU {port.mtu_bytes}"]
    if rate.is_file():
        parts.append(rate.read_text().strip())
    return ", ".join(parts)


def _round_trip(config: TransportConfig) -> Finding:
    """From this process to itself, as two of a job would do it: the transport compares the classes' marks."""
    subject = "RDMA classes"
    spec = TransportSpec(replace(config, kind="verbs", listen="127.0.0.1"), JobToken.draw())
    layout = BlockLayout(KVFormat("uint8", 1, (KVGroup("probe", _ROUND_TRIP_BYTES),)), 1)
    sent, back = np.arange(_ROUND_TRIP_BYTES, dtype=np.uint32).astype(np.uint8), None
    try:
        with (
            closing(StagingMemory.create("doctor", layout, 1)) as memory,
            closing(open_region_server(spec)) as server,
            closing(open_transport(spec)) as transport,
        ):
            region = server.register(memory)
            for traffic_class in TrafficClass:
                back = np.zeros_like(sent)
                transport.write(region, [TransferList.piece(sent, 0)], traffic_class, _DEADLINE_S)
                transport.read(region, [TransferList.piece(back, 0)], traffic_class, _DEADLINE_S)
                if not np.array_equal(sent, back):
                    told = f"bytes written in class {traffic_class.name} came back as others"
                    return Finding(subject, Verdict.FAIL, told, "do not use this device: transport=tcp")
    except KvStoreError as error:
        return Finding(subject, Verdict.FAIL, str(error), "see docs/network.md, or use transport=tcp")
    marks = ", ".join(
        f"{each.name} service level {row.service_level}, DSCP {row.dscp}" for each, row in CLASS_TABLE.items()
    )
    return Finding(subject, Verdict.OK, f"read back as set, and bytes came back in each: {marks}")

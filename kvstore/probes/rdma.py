"""RDMA: devices, ports and addresses as the kernel lists them, and whether verbs can be used here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvstore.host_facts import host_facts
from kvstore.probes.finding import Finding, Verdict
from kvstore.transport_config import TransportConfig

DEVICES = Path("/sys/class/infiniband")
_NO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """One port of a device, from /sys/class/infiniband."""

    device: str
    number: str
    state: str
    """`4: ACTIVE` where it can be used."""
    link_layer: str
    """InfiniBand, or Ethernet (RoCE)."""
    rate: str
    gids: tuple[str, ...]
    """`index: address (type)` of those that are set."""
    mtu: str
    """Of the network interface beneath (RoCE); empty for InfiniBand."""

    def __str__(self) -> str:
        parts = [f"{self.device} port {self.number}", self.state, self.link_layer, self.rate]
        if self.mtu:
            parts.append(f"MTU {self.mtu}")
        return ", ".join([*parts, f"{len(self.gids)} GIDs"])


def rdma_ports(devices: Path = DEVICES) -> list[RdmaPort]:
    """Every port of every device; whoever has no RDMA has no such folder."""
    if not devices.is_dir():
        return []
    return [
        RdmaPort(
            device.name,
            port.name,
            _text(port / "state"),
            _text(port / "link_layer"),
            _text(port / "rate"),
            tuple(_gids(port)),
            _mtu(port),
        )
        for device in sorted(devices.iterdir())
        for port in sorted((device / "ports").iterdir())
    ]


def probe_rdma(config: TransportConfig) -> Sequence[Finding]:
    """What is there, and whether this process can use it."""
    wanted = config.kind == "verbs"
    ports, facts = rdma_ports(), host_facts()
    if not ports:
        advice = (
            "transport=verbs cannot run; use transport=auto"
            if wanted
            else "fine on one host; between hosts KV then goes over TCP, at the cost of processor time"
        )
        return [Finding("RDMA", Verdict.FAIL if wanted else Verdict.WARN, "no device", advice)]
    told = "; ".join(map(str, ports))
    if facts.rdma is None:
        advice = f"{facts.rdma_told}; docs/network.md says what verbs need"
        return [Finding("RDMA", Verdict.FAIL if wanted else Verdict.WARN, told, advice)]
    gids = "; ".join(f"{port.device}/{port.number} {gid}" for port in ports for gid in port.gids)
    return [
        Finding("RDMA", Verdict.OK, f"{told}; verbs would use {facts.rdma_told}"),
        Finding("RDMA GIDs", Verdict.OK, gids),
    ]


def _gids(port: Path) -> Iterator[str]:
    for entry in sorted((port / "gids").iterdir(), key=lambda path: int(path.name)):
        gid = _text(entry)
        if gid and gid != _NO_GID:
            kind = _text(port / "gid_attrs" / "types" / entry.name)
            yield f"{entry.name}: {gid} ({kind or 'unknown'})"


def _mtu(port: Path) -> str:
    """That of the interface of the first GID."""
    for entry in sorted((port / "gid_attrs" / "ndevs").glob("*")):
        interface = _text(entry)
        if interface:
            return _text(Path("/sys/class/net") / interface / "mtu")
    return ""


def _text(path: Path) -> str:
    """What the kernel says there; nothing where it says that nothing is set by an error."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""

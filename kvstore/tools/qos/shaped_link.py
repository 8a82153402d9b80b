"""A network device whose packets of RoCE v2 share a limited rate by the DSCP of the class table.

It is Linux's hierarchical token bucket (tc-htb): a class has its share for as long as it has packets waiting,
and takes what the other leaves. Software sends through it, soft-RoCE too; RDMA hardware goes past it and
has arbiters of its own (docs/network.md).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from kvstore.tools.errors import WrongInput
from kvstore.traffic import CLASS_TABLE, TrafficClass

SHARES = {TrafficClass.MODEL: 0.99, TrafficClass.KV: 0.01}
"""Of the rate, while both have something to send (DualPath, arXiv 2602.21548, A.1)."""
ROCE_V2_PORT = 4791
DSCP_MASK = 0xFC
BURST_BYTES = 32 << 10
QUANTUM_BYTES = 9000
QUEUE_PACKETS = 2000
"""More than both classes have on the way: nothing is dropped, as on a lossless fabric."""
DEADLINE_S = 20.0
_COUNTED = re.compile(r"class htb 1:(\w+) .*?Sent (\d+) bytes \d+ pkt \(dropped (\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sent:
    """What one class has sent since the link was shaped, headers included."""

    nbytes: int
    dropped_packets: int


class ShapedLink:
    """Use as a context manager: the device is as it was at the end. Needs root."""

    def __init__(self, device: str, bits_per_s: float) -> None:
        self._device = device
        self._bits_per_s = bits_per_s
        self._minors = {traffic_class: str(10 + place) for place, traffic_class in enumerate(SHARES)}

    def __enter__(self) -> ShapedLink:
        whole = f"{self._bits_per_s:.0f}bit"
        burst = f"burst {BURST_BYTES} cburst {BURST_BYTES}"
        _tc(f"qdisc add dev {self._device} root handle 1: htb")
        _tc(f"class add dev {self._device} parent 1: classid 1:1 htb rate {whole} ceil {whole} {burst}")
        for priority, (traffic_class, share) in enumerate(SHARES.items()):
            minor, dscp = self._minors[traffic_class], CLASS_TABLE[traffic_class].dscp
            _tc(
                f"class add dev {self._device} parent 1:1 classid 1:{minor} htb "
                f"rate {self._bits_per_s * share:.0f}bit ceil {whole} {burst} "
                f"prio {priority} quantum {QUANTUM_BYTES}"
            )
            _tc(f"qdisc add dev {self._device} parent 1:{minor} pfifo limit {QUEUE_PACKETS}")
            _tc(
                f"filter add dev {self._device} parent 1: protocol ip prio 1 flower ip_proto udp "
                f"dst_port {ROCE_V2_PORT} ip_tos {dscp << 2:#x}/{DSCP_MASK:#x} classid 1:{minor}"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _tc(f"qdisc del dev {self._device} root")

    def sent(self) -> Mapping[TrafficClass, Sent]:
        """What the device has sent by now, by class."""
        told = _COUNTED.findall(_tc(f"-s class show dev {self._device}"))
        by_minor = {minor: Sent(int(nbytes), int(dropped)) for minor, nbytes, dropped in told}
        return {traffic_class: by_minor[minor] for traffic_class, minor in self._minors.items()}


def _tc(arguments: str) -> str:
    """What tc prints. Raises WrongInput with what it complained of."""
    command = ["tc", *arguments.split()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except FileNotFoundError:
        raise WrongInput("needs tc (Debian's iproute2)") from None
    if done.returncode:
        raise WrongInput(f"tc {arguments}: {done.stderr.strip()}; needs root and the kernel's sch_htb")
    return done.stdout

"""Whether connections carry the traffic class that they are given (the class table, read back)."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from kvstore.probes.finding import Finding, Verdict
from kvstore.tcp_dscp import set_dscp
from kvstore.traffic import CLASS_TABLE


def probe_tcp_classes() -> Sequence[Finding]:
    """The DSCP of a TCP socket of each class, as the kernel tells it."""
    got = {}
    for traffic_class, settings in CLASS_TABLE.items():
        with socket.socket() as sock:
            got[traffic_class] = set_dscp(sock, settings.dscp)
    told = ", ".join(f"{each.name} has DSCP {dscp}" for each, dscp in got.items())
    wrong = [each for each, dscp in got.items() if dscp != CLASS_TABLE[each].dscp]
    if not wrong:
        return [Finding("TCP classes", Verdict.OK, told)]
    wanted = ", ".join(f"{each.name} {CLASS_TABLE[each].dscp}" for each in wrong)
    advice = f"asked for {wanted}: this kernel or container changes IP_TOS, so transport=tcp will not connect"
    return [Finding("TCP classes", Verdict.FAIL, told, advice)]

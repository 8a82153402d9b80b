"""The processor: how many cores this process may use, and whether they are free."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kvstore.probes.finding import Finding, Verdict


def probe_processor() -> Sequence[Finding]:
    """Cores, and the load of the last minute."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    told, figures = f"{cores} cores, load {load:.1f}", {"cores": float(cores), "load": load}
    if load > cores:
        advice = "others keep it busy: rates told here are too low, and runs measured now would be too slow"
        return [Finding("processor", Verdict.WARN, told, advice, figures)]
    return [Finding("processor", Verdict.OK, told, figures=figures)]

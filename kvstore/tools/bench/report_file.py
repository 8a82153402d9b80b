"""Writes what a script has measured, with what it ran on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvstore.tools.bench.figures import Findings


def write_report(
    path: Path | None, findings: Findings, conditions: Mapping[str, Any], *, quick: bool
) -> None:
    """The JSON of one run, in `path`; nothing without one. `conditions` are the script's own."""
    if path is None:
        return
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "quick": quick,
    }
    path.write_text(json.dumps(findings.answer(machine | dict(conditions), quick=quick), indent=1) + "\n")

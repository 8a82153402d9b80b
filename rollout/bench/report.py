"""What the benchmark measured, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from kvstore.tools.bench.figures import Findings
from kvstore.tools.output import DASH, make_table


def bench_report(findings: Findings, conditions: Mapping[str, Any], *, quick: bool) -> list[RenderableType]:
    """A row for each figure; what is left out and why; the conditions."""
    table = make_table("figure", "measured", "unit", "goal", "reached", left=(0, 2, 4))
    for figure in findings.figures:
        reached = None if quick else figure.reached()
        verdict = Text({True: "yes", False: "no", None: DASH}[reached], "red" if reached is False else "")
        table.add_row(figure.name, f"{figure.value:.3f}", figure.unit, figure.goal(), verdict)
    left_out = [Text(f"left out: {name}: {reason}") for name, reason in findings.left_out.items()]
    told = Text(", ".join(f"{name} {value}" for name, value in conditions.items()), style="dim")
    return [table, *left_out, Text(), told]

"""What every row has at hand: the runner, and where comparisons and series are put."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvstore.tools.bench.figures import Figure, Findings
from rollout.reproduce.paper import Comparison
from rollout.reproduce.runner import Runner


@dataclass(slots=True)
class Desk:
    """One run of a script."""

    runner: Runner
    traces: tuple[str, ...] = ()
    """Recorded agents, where a row wants some."""
    comparisons: list[Comparison] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    """What plots and tables are made of, by row."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Rows that could not be had, and why."""

    def tell(self, comparison: Comparison) -> None:
        self.comparisons.append(comparison)

    @property
    def quick(self) -> bool:
        return self.runner.quick

    def findings(self) -> Findings:
        """In the format of every measuring script."""
        told = [_figure(comparison) for comparison in self.comparisons]
        rows = [_row(comparison) for comparison in self.comparisons]
        series = {**self.series, "comparisons": rows, "runs": self.runner.told()}
        return Findings(told, series, self.left_out)


def _figure(comparison: Comparison) -> Figure:
    name, paper = f"{comparison.row}_{comparison.name}", comparison.paper
    if comparison.at_most is not None:
        return Figure(name, comparison.ours, comparison.unit, comparison.at_most, "lower")
    if paper is None or paper.tolerance is None:
        return Figure(name, comparison.ours, comparison.unit)
    return Figure(name, comparison.ours, comparison.unit, paper.value, "near", paper.tolerance)


def _row(comparison: Comparison) -> dict[str, Any]:
    paper = comparison.paper
    return {
        "row": comparison.row,
        "name": comparison.name,
        "setup": comparison.setup,
        "ours": comparison.ours,
        "unit": comparison.unit,
        "paper": paper and paper.value,
        "paper_source": paper and paper.source,
        "tolerance": paper.tolerance if paper else None,
        "at_most": comparison.at_most,
        "met": comparison.met,
    }

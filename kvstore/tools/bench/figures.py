"""What a benchmark reports, in the shape that every measuring script of the project writes.

Pure. A figure without a target is told for comparison only. In a quick run no figure is judged.
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower", "near"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Better = "higher"
    tolerance: float = 0.0
    """Where `near` its target is good: how far from it still is."""

    def reached(self) -> bool | None:
        """Is it as good as its target? None without one."""
        if self.target is None:
            return None
        if self.better == "near":
            return abs(self.value - self.target) <= self.tolerance
        compare = operator.ge if self.better == "higher" else operator.le
        return bool(compare(self.value, self.target))

    def goal(self) -> str:
        """`>= 0.9`; empty without a target."""
        if self.target is not None and self.better == "near":
            return f"{self.target:g} +- {self.tolerance:.3g}"
        sign = ">=" if self.better == "higher" else "<="
        return "" if self.target is None else f"{sign} {self.target:g}"

    def line(self) -> str:
        """The figure for people."""
        goal = f"  (goal {self.goal()})" if self.goal() else ""
        return f"{self.name:46} {self.value:>12.6g} {self.unit}{goal}"


@dataclass(slots=True)
class Findings:
    """Everything one run measured."""

    figures: list[Figure] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    """Raw numbers behind the figures."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a figure could not be had, by its name."""

    def add(
        self, name: str, value: float, unit: str, target: float | None = None, better: Better = "higher"
    ) -> Figure:
        """One more figure."""
        figure = Figure(name, value, unit, target, better)
        self.figures.append(figure)
        return figure

    def add_ratio(self, name: str, target: float | None, ratios: Mapping[str, float]) -> None:
        """The lowest of `ratios` is the figure; all of them go into the series."""
        self.series[name] = dict(ratios)
        worst = round(min(ratios.values()), 3)
        self.figures.append(Figure(name, worst, "ratio, higher is better", target))

    def answer(self, conditions: Mapping[str, Any], *, quick: bool) -> dict[str, Any]:
        """The JSON object."""
        figures = [
            {
                "name": figure.name,
                "value": figure.value,
                "unit": figure.unit,
                "target": figure.target,
                "ok": None if quick else figure.reached(),
            }
            for figure in self.figures
        ]
        return {
            "figures": figures,
            "conditions": {**conditions, "left_out": self.left_out},
            "series": self.series,
        }


def speed_over(ours_s: list[float], baseline_s: list[float]) -> float:
    """How many times as fast ours is for the same work: the median of the rounds' ratios.

    The two sides of a round run one after the other, so a slow spell of the machine meets both.
    """
    return statistics.median(theirs / own for own, theirs in zip(ours_s, baseline_s, strict=True))

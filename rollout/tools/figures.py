"""How often a tool was called, how it ended and how long it took, as numbers that add up over workers.

Pure: no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

BOUNDS_S = tuple(0.001 * 2**power for power in range(20))
"""Upper ends of the histogram's buckets, 1 ms to 9 min; one more holds what is longer."""


@dataclass(slots=True)
class LatencyHistogram:
    """Seconds, counted in buckets twice as wide each."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    def __add__(self, more: LatencyHistogram) -> LatencyHistogram:
        counts = [a + b for a, b in zip(self.counts, more.counts, strict=True)]
        return LatencyHistogram(counts, self.total_s + more.total_s)


@dataclass(slots=True)
class ToolFigures:
    """Counts of one tool."""

    calls: int = 0
    """That reached the tool or were refused because it was cut off or busy; malformed ones did not."""
    refused: int = 0
    """Answered with a refusal by the tool itself, such as a division by zero."""
    failures: int = 0
    """Attempts that raised or took too long."""
    timeouts: int = 0
    """Those of them that took too long."""
    retries: int = 0
    cut_off: int = 0
    """Calls refused because the tool kept failing."""
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    """Of the attempts."""

    def __add__(self, more: ToolFigures) -> ToolFigures:
        return ToolFigures(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))


@dataclass(slots=True)
class ToolReport:
    """What the tools of a worker did since its start."""

    malformed_calls: int = 0
    tools: dict[str, ToolFigures] = field(default_factory=dict)

    def __add__(self, more: ToolReport) -> ToolReport:
        names = dict.fromkeys((*self.tools, *more.tools))
        tools = {
            name: self.tools.get(name, ToolFigures()) + more.tools.get(name, ToolFigures()) for name in names
        }
        return ToolReport(self.malformed_calls + more.malformed_calls, tools)

    def series(self) -> Mapping[str, float]:
        """The figures under flat names `tools/...`; histograms as counts of `le_` (at most) x seconds."""
        if not self.tools and not self.malformed_calls:
            return {}
        flat: dict[str, float] = {"tools/malformed_calls": self.malformed_calls}
        for name, figures in self.tools.items():
            path, latency = f"tools/{name}", figures.latency
            for count in ("calls", "refused", "failures", "timeouts", "retries", "cut_off"):
                flat[f"{path}/{count}"] = getattr(figures, count)
            attempts = sum(latency.counts)
            if attempts:
                flat[f"{path}/latency_s/mean"] = latency.total_s / attempts
            seen = 0
            for bound_s, count_in in zip(BOUNDS_S, latency.counts, strict=False):
                seen += count_in
                if count_in:
                    flat[f"{path}/latency_s/le_{bound_s:g}"] = seen
        return flat

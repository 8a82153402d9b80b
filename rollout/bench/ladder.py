"""The steps of the ablation, as overrides: each adds one thing to the one before.

    no_layerwise -> basic -> dual -> dual_scheduler -> split -> oracle

Up to `dual` nothing is scheduled: engines in turn, batches by count, and dual path reads on the two sides in
turn (DualPath, arXiv 2602.21548, section 7.4). `dual_scheduler` is the paper's system, `split` is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

_UNSCHEDULED = ("scheduler.placement=round_robin", "scheduler.batching=count")
_SCHEDULED = ("scheduler.placement=least_loaded", "scheduler.batching=auto")


@dataclass(frozen=True, slots=True)
class Step:
    """One way to serve a replay."""

    name: str
    overrides: tuple[str, ...]

    def with_overrides(self, suffix: str, *overrides: str) -> Step:
        """The same with more overrides, named `<name>_<suffix>`."""
        return Step(f"{self.name}_{suffix}", (*self.overrides, *overrides))


NO_LAYERWISE = Step(
    "no_layerwise", ("scheduler.read_plan=basic", *_UNSCHEDULED, "engines.prefill_layerwise=false")
)
BASIC = Step("basic", ("scheduler.read_plan=basic", *_UNSCHEDULED))
DUAL = Step("dual", ("scheduler.read_plan=alternate", *_UNSCHEDULED))
DUAL_SCHEDULER = Step("dual_scheduler", ("scheduler.read_plan=dual", *_SCHEDULED))
SPLIT = Step("split", ("scheduler.read_plan=split", *_SCHEDULED))
ORACLE = Step("oracle", ("scheduler.read_plan=split", *_SCHEDULED, "engines.oracle=true"))
LADDER = (NO_LAYERWISE, BASIC, DUAL, DUAL_SCHEDULER, SPLIT, ORACLE)

"""Ways to serve that differ in nothing but the read plan, all scheduled as the paper's system is."""

from __future__ import annotations

from rollout.bench.ladder import DUAL_SCHEDULER, ORACLE, SPLIT, Step

ONE_PATH = Step(
    "one_path",
    tuple(
        "scheduler.read_plan=basic" if each.startswith("scheduler.read_plan=") else each
        for each in DUAL_SCHEDULER.overrides
    ),
)
PLANS = {"one path": ONE_PATH, "dual (paper)": DUAL_SCHEDULER, "split (ours)": SPLIT, "oracle": ORACLE}
DUAL, OURS = DUAL_SCHEDULER, SPLIT

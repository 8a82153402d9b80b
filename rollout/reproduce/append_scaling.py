"""More appended or generated in each turn, cut at the set's longest context (figure 9)."""

from __future__ import annotations

from dataclasses import replace

from rollout.reproduce.ablation import case_of
from rollout.reproduce.case import DUALPATH, FLOOR, FOOT
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

_AGENTS = 1024
_SCALES = (1.0, 1.5, 2.0, 3.0)
_STEPS = (FOOT, DUALPATH, FLOOR)


def append_scaling(desk: Desk) -> None:
    run, base = desk.runner, case_of(_AGENTS)
    setup = f"{base.setup}, append x1 to x3"
    jct_s = {
        step.name: [run.jct_s(replace(base, step=step, append_scale=scale)) for scale in _SCALES]
        for step in _STEPS
    }
    speedups = [foot / ours for foot, ours in zip(jct_s[FOOT.name], jct_s[DUALPATH.name], strict=True)]
    for name, ours, paper in (("least", min(speedups), 1.82), ("most", max(speedups), 1.99)):
        desk.tell(
            Comparison("append_scaling", f"{name}_speedup", setup, ours, "x", PaperValue.within(0.10, paper))
        )
    gaps = [foot / floor for foot, floor in zip(jct_s[FOOT.name], jct_s[FLOOR.name], strict=True)]
    desk.tell(
        Comparison(
            "append_scaling",
            "basic_over_oracle_at_x3_over_x1",
            f"{setup}; below 1: Basic nears the rest",
            gaps[-1] / gaps[0],
            "ratio",
            at_most=1.0,
        )
    )
    twice = replace(base, output_scale=2.0)
    generated = run.jct_s(twice.served(FOOT)) / run.jct_s(twice)
    desk.tell(Comparison("append_scaling", "speedup_generation_x2", base.setup, generated, "x"))
    desk.series["append_scaling"] = {
        "x": "append, times the set's",
        "y": "job completion time (s)",
        "lines": {name: list(zip(_SCALES, values, strict=True)) for name, values in jct_s.items()},
    }

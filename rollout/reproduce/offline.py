"""Offline speed-up over Basic (figure 7): three models, their sets. Not all numbers of agents are told."""

from __future__ import annotations

from rollout.reproduce.ablation import case_of
from rollout.reproduce.case import DUALPATH, FLOOR, FOOT, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

_CASES = {
    "dsv32_660b": (
        case_of(1024),
        case_of(2048),
        Case("dsv32_660b", "paper-32k", 2, 4, 2048, DUALPATH),
        Case("dsv32_660b", "paper-48k", 2, 4, 2048, DUALPATH),
    ),
    "ds_27b": tuple(Case("ds_27b", name, 1, 1, 1024, DUALPATH) for name in ("paper-32k", "paper-64k")),
    "qwen25_32b": tuple(Case("qwen25_32b", name, 1, 2, 256, DUALPATH) for name in ("paper-32k", "paper-64k")),
}
_BEST = {
    "dsv32_660b": PaperValue.within(0.10, 1.87),
    "ds_27b": PaperValue.within(0.10, 1.78),
    "qwen25_32b": PaperValue.within(0.10, 1.78, "assumed"),
}
"""Of Qwen the paper says only that it is like DS 27B."""


def offline(desk: Desk) -> None:
    run = desk.runner
    for model, cases in _CASES.items():
        speedups = []
        for case in cases:
            foot_s, ours_s, floor_s = (run.jct_s(case.served(step)) for step in (FOOT, DUALPATH, FLOOR))
            speedups.append(foot_s / ours_s)
            name = f"{model}_{case.set_name}_{case.agents}"
            desk.tell(Comparison("offline", f"speedup_{name}", case.setup, foot_s / ours_s, "x"))
            desk.tell(Comparison("offline", f"over_oracle_{name}", case.setup, ours_s / floor_s, "ratio"))
        desk.tell(
            Comparison(
                "offline", f"best_speedup_{model}", "best of the above", max(speedups), "x", _BEST[model]
            )
        )

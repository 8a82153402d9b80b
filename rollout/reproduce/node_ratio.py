"""DS 27B with one and two nodes of either role (figure 8). Its set and number of agents are assumed."""

from __future__ import annotations

from statistics import mean

from rollout.reproduce.case import DUALPATH, FLOOR, FOOT, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

_AGENTS = 1024
CASES = {
    (prefill, decode): Case("ds_27b", "paper-64k", prefill, decode, _AGENTS, DUALPATH)
    for prefill, decode in ((1, 1), (1, 2), (2, 1))
}
_PAIRS = {
    "basic_1p1d_over_basic_1p2d": (FOOT, (1, 1), FOOT, (1, 2)),
    "dual_1p1d_over_basic_2p1d": (DUALPATH, (1, 1), FOOT, (2, 1)),
    "dual_2p1d_over_dual_1p2d": (DUALPATH, (2, 1), DUALPATH, (1, 2)),
}
"""Equal storage NICs that can be read through: equal times."""


def node_ratio(desk: Desk) -> None:
    run, setup = desk.runner, f"ds_27b 64k 1P1D, 1P2D and 2P1D, {_AGENTS} agents"
    speedups, over_oracle = [], []
    for case in CASES.values():
        foot_s, ours_s, floor_s = (run.jct_s(case.served(step)) for step in (FOOT, DUALPATH, FLOOR))
        speedups.append(foot_s / ours_s)
        over_oracle.append(ours_s / floor_s)
        desk.tell(
            Comparison("node_ratio", f"speedup_{case.cluster.lower()}", case.setup, foot_s / ours_s, "x")
        )
    for name, ours, paper in (("mean", mean(speedups), 1.64), ("most", max(speedups), 2.46)):
        desk.tell(
            Comparison("node_ratio", f"{name}_speedup", setup, ours, "x", PaperValue.within(0.10, paper))
        )
    for name, ours, paper in (("least", min(over_oracle), 1.09), ("most", max(over_oracle), 1.85)):
        desk.tell(
            Comparison(
                "node_ratio",
                f"{name}_over_oracle",
                setup,
                ours,
                "ratio",
                PaperValue.within(0.10, paper, "assumed"),
            )
        )
    for name, (step, nodes, other_step, other_nodes) in _PAIRS.items():
        ratio = run.jct_s(CASES[nodes].served(step)) / run.jct_s(CASES[other_nodes].served(other_step))
        desk.tell(Comparison("node_ratio", name, setup, ratio, "ratio", PaperValue.within(0.05, 1.0)))

"""Agents that arrive at random: how many a second are served within TTFT 4 s and TPOT 50 ms (figure 10).

Which set the paper replayed is not told, so all three are shown. A rate holds if, when the paper's rule ends
the run (rollout.reproduce.steadiness), the last window's means are within the limits.
"""

from __future__ import annotations

from dataclasses import replace

from rollout.rate_search import highest_rate
from rollout.replay import TPOT_SLO_S, TTFT_SLO_S
from rollout.reproduce.case import DUALPATH, FOOT, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue
from rollout.traces.paperlike import PAPER_SETS

HORIZON_S = 3600.0
"""Of a run that neither settles nor tips over before."""
_QUICK_HORIZON_S = 20.0
_PRECISION = 0.05
_TRIALS = 9
_START = 0.4
_CAPACITY = {"dsv32_660b": (2, 4, 2.25, 0.20, 0.45), "ds_27b": (1, 1, 1.67, 0.3, 0.5)}
"""Nodes, the paper's ratio, and capacities read off its figure: Basic, DualPath."""
TABLE_3 = {"ttft_s": 1.739, "ttst_s": 0.228, "tpot_s": 0.039}
"""2P4D at 0.4 agents a second."""


def online(desk: Desk) -> None:
    for model, (prefill, decode, ratio, basic_read_off, dual_read_off) in _CAPACITY.items():
        for trace in PAPER_SETS:
            case = Case(model, trace, prefill, decode, 1, DUALPATH, window=None)
            name = f"{model}_{trace.removeprefix('paper-')}"
            basic, dual = (_capacity(desk, case.served(step)) for step in (FOOT, DUALPATH))
            setup = f"{model} {trace.removeprefix('paper-')} {case.cluster}"
            for step, found, paper in (("basic", basic, basic_read_off), ("dual", dual, dual_read_off)):
                desk.tell(
                    Comparison(
                        "online",
                        f"agents_per_s_{step}_{name}",
                        setup,
                        found,
                        "agents/s",
                        PaperValue.told(paper, "read off"),
                    )
                )
            if basic:
                desk.tell(
                    Comparison(
                        "online",
                        f"capacity_ratio_{name}",
                        setup,
                        dual / basic,
                        "x",
                        PaperValue.within(0.15, ratio),
                    )
                )
            else:
                desk.left_out[f"online_capacity_ratio_{name}"] = "Basic kept the limits at no rate"
    for trace in PAPER_SETS:
        _tell_table_3(desk, trace)


def arriving(case: Case, agents_per_s: float, horizon_s: float) -> Case:
    """Agents that arrive over a horizon."""
    agents = max(round(agents_per_s * horizon_s), 1)
    return replace(case, agents=agents, agents_per_s=agents_per_s, horizon_s=horizon_s)


def _tell_table_3(desk: Desk, trace: str) -> None:
    case = arriving(Case("dsv32_660b", trace, 2, 4, 1, DUALPATH), 0.4, online_horizon_s(desk))
    outcome = desk.runner.run(case)
    for figure, paper in TABLE_3.items():
        ours = getattr(outcome, figure)
        if ours is not None:
            desk.tell(
                Comparison(
                    "online",
                    f"{figure}_{trace.removeprefix('paper-')}_0.4",
                    case.setup,
                    ours,
                    "s",
                    PaperValue.within(0.25, paper),
                )
            )


def _capacity(desk: Desk, case: Case) -> float:
    def holds(agents_per_s: float) -> bool:
        outcome = desk.runner.run(arriving(case, agents_per_s, online_horizon_s(desk)))
        ttft_s, tpot_s = outcome.ttft_s, outcome.tpot_s
        return ttft_s is not None and ttft_s <= TTFT_SLO_S and (tpot_s or 0.0) <= TPOT_SLO_S

    trials = 2 if desk.quick else _TRIALS
    return highest_rate(holds, _START, precision=_PRECISION, max_trials=trials)


def online_horizon_s(desk: Desk) -> float:
    return _QUICK_HORIZON_S if desk.quick else HORIZON_S

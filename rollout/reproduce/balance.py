"""How even storage NICs and attention are (figures 13 and 14). Model and nodes of the first are assumed."""

from __future__ import annotations

from rollout.reproduce.ablation import case_of
from rollout.reproduce.case import DUAL_PATH, DUALPATH, OURS, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

_NICS = Case("ds_27b", "paper-48k", 1, 2, 1024, DUALPATH)
_NIC_STEPS = {
    "round_robin": (DUAL_PATH, PaperValue(1.53, "stated", 0.1)),
    "scheduled": (DUALPATH, PaperValue(1.18, "stated", 0.1)),
    "split": (OURS, None),
}
_ATTENTION_AGENTS = (512, 1024)


def balance(desk: Desk) -> None:
    for name, (step, paper) in _NIC_STEPS.items():
        case = _NICS.served(step)
        ratio = desk.runner.run(case).snic_max_over_avg
        if ratio is not None:
            desk.tell(Comparison("balance", f"snic_{name}", case.setup, ratio, "max/avg by second", paper))
    for agents in _ATTENTION_AGENTS:
        for name, step, paper in (
            ("unscheduled", DUAL_PATH, None),
            ("scheduled", DUALPATH, PaperValue(1.06, "stated", 0.1)),
        ):
            case = case_of(agents, step)
            early = desk.runner.run(case).attention_early
            if early is not None:
                desk.tell(
                    Comparison(
                        "balance",
                        f"attention_{name}_{agents}",
                        f"{case.setup}, first 5 %",
                        early,
                        "max/avg",
                        paper,
                    )
                )

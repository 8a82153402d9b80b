"""The ablation of DeepSeek-V3.2 on 2P4D (section 7.4): what each part takes off the job completion time."""

from __future__ import annotations

from statistics import mean

from rollout.bench.ladder import Step
from rollout.reproduce.case import DUAL_PATH, DUALPATH, FLOOR, FOOT, LAYERWISE, OURS, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

AGENTS = (1024, 2048)
CUTS = {"layerwise": (LAYERWISE, 17.21), "dual": (DUAL_PATH, 38.19), "scheduler": (DUALPATH, 45.62)}
"""Each step's, in percent of Basic's job completion time."""
READ_OFF = {
    1024: (5400, 4250, 3200, 3000),
    2048: (10100, 8750, 6500, 5450),
}
"""Job completion times by agents: Basic, and with each of CUTS."""
_STEPS = (FOOT, LAYERWISE, DUAL_PATH, DUALPATH)


def case_of(agents: int, step: Step = DUALPATH) -> Case:
    return Case("dsv32_660b", "paper-64k", 2, 4, agents, step)


def ablation(desk: Desk) -> None:
    run = desk.runner
    for name, (step, paper) in CUTS.items():
        cuts = [100 * (1 - run.jct_s(case_of(n, step)) / run.jct_s(case_of(n, FOOT))) for n in AGENTS]
        desk.tell(
            Comparison(
                "ablation",
                f"cut_{name}",
                "dsv32_660b 64k 2P4D, mean of 1024 and 2048 agents",
                mean(cuts),
                "% of JCT",
                PaperValue(paper, "stated", 5.0),
            )
        )
    for agents, read_off in READ_OFF.items():
        for step, paper in zip(_STEPS, read_off, strict=True):
            case = case_of(agents, step)
            desk.tell(
                Comparison(
                    "ablation",
                    f"jct_{step.name}_{agents}",
                    case.setup,
                    run.jct_s(case),
                    "s",
                    PaperValue.told(paper, "read off"),
                )
            )
        for step in (OURS, FLOOR):
            case = case_of(agents, step)
            ours = run.jct_s(case)
            desk.tell(Comparison("ablation", f"jct_{step.name}_{agents}", case.setup, ours, "s"))
        over_oracle = run.jct_s(case_of(agents)) / run.jct_s(case_of(agents, FLOOR))
        setup = case_of(agents).setup
        desk.tell(Comparison("ablation", f"over_oracle_{agents}", setup, over_oracle, "ratio", at_most=1.15))

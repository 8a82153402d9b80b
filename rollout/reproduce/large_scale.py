"""The same load a node on ever more nodes (table 3). The 48k set fits its offline row."""

from __future__ import annotations

from rollout.reproduce.case import DUALPATH, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.online import TABLE_3, arriving, online_horizon_s
from rollout.reproduce.paper import Comparison, PaperValue

_AGENTS_PER_UNIT = 2048
STATED_S = {1: 3167.0, 24: 3201.0}
"""JCT in the paper, by units of 2P4D."""
_STEADY_ONLINE = {"ttft_s": 1.847, "ttst_s": 0.194, "tpot_s": 0.036}
_ONLINE_UNITS, _ONLINE_AGENTS_PER_S = 22, 8.8


def scale_out(desk: Desk) -> None:
    """Up to 4 times 2P4D: what a default run affords."""
    _tell_offline(desk, (1, 4))


def large_scale(desk: Desk) -> None:
    """48P96D, 1,152 GPUs, 48k agents; and 44P88D online."""
    _tell_offline(desk, (1, 24))
    unit, many = (
        arriving(
            Case("dsv32_660b", "paper-48k", 2 * units, 4 * units, 1, DUALPATH),
            units * _ONLINE_AGENTS_PER_S / _ONLINE_UNITS,
            online_horizon_s(desk),
        )
        for units in (1, _ONLINE_UNITS)
    )
    for figure, paper in _STEADY_ONLINE.items():
        ours, alone = (getattr(desk.runner.run(case), figure) for case in (many, unit))
        if ours is None or alone is None:
            continue
        value = PaperValue.within(0.25, paper)
        desk.tell(Comparison("large_scale", f"{figure}_8.8", many.setup, ours, "s", value))
        ratio = PaperValue(paper / TABLE_3[figure], "stated", 0.03)
        desk.tell(
            Comparison("large_scale", f"{figure}_8.8_over_0.4", many.setup, ours / alone, "ratio", ratio)
        )


def unit_case(units: int) -> Case:
    """So many times 2P4D, each with its agents."""
    return Case("dsv32_660b", "paper-48k", 2 * units, 4 * units, _AGENTS_PER_UNIT * units, DUALPATH)


def _tell_offline(desk: Desk, units: tuple[int, ...]) -> None:
    jct_s = {}
    for each in units:
        case = unit_case(each)
        jct_s[each] = desk.runner.jct_s(case)
        stated = STATED_S.get(each)
        value = stated and PaperValue.within(0.25, stated)
        name = f"jct_{case.cluster.lower()}"
        desk.tell(Comparison("large_scale", name, case.setup, jct_s[each], "s", value or None))
    first, last = units[0], units[-1]
    paper = STATED_S[24] / STATED_S[1]
    desk.tell(
        Comparison(
            "large_scale",
            f"jct_{last}_units_over_one",
            f"dsv32_660b 48k, {last} times 2P4D with {_AGENTS_PER_UNIT} agents each",
            jct_s[last] / jct_s[first],
            "ratio",
            PaperValue(paper, "stated" if last in STATED_S else "assumed", 0.03),
        )
    )

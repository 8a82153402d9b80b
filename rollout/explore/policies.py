"""Our extensions against the paper's rules: read plan, order of turns, kept DRAM, waits for tools."""

from __future__ import annotations

from dataclasses import replace

from rollout.explore.steps import DUAL, ONE_PATH, OURS
from rollout.explore.sweeps import BASE
from rollout.reproduce.case import Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison

_SLOW_NICS = ("cluster.snic_bytes_per_s=1562500000",)
"""A quarter of the paper's storage NICs, so that reading decides."""
_SLOW = replace(BASE, overrides=_SLOW_NICS)
_ORDERS = ("similar", "longest_remaining")
_DRAM_BYTES = (0, 250_000_000_000, 500_000_000_000, 1_000_000_000_000, 2_000_000_000_000)
_WAITS_S = (0.0, 10.0, 30.0)
_KEPT = ("simulation.dram_bytes=1000000000000",)
_MEMORY = {"no_dram": (), "dram": _KEPT, "dram_prefetch": (*_KEPT, "scheduler.prefetch=true")}


def split_plan(desk: Desk) -> None:
    for name, case in (("paper_nics", BASE), ("quarter_nics", _SLOW)):
        ratio = desk.runner.jct_s(case.served(DUAL)) / desk.runner.jct_s(case.served(OURS))
        desk.tell(Comparison("split_plan", f"dual_over_split_{name}", case.setup, ratio, "x"))
        ttft = [desk.runner.run(case.served(step)).ttft_s for step in (DUAL, OURS)]
        if None not in ttft:
            ratio = (ttft[0] or 0.0) / (ttft[1] or 1.0)
            desk.tell(Comparison("split_plan", f"ttft_dual_over_split_{name}", case.setup, ratio, "x"))


def orders(desk: Desk) -> None:
    for order in _ORDERS:
        ordered = replace(BASE, step=DUAL, overrides=(f"scheduler.order={order}",))
        ratio = desk.runner.jct_s(replace(ordered, overrides=())) / desk.runner.jct_s(ordered)
        desk.tell(Comparison("orders", f"fifo_over_{order}", ordered.setup, ratio, "x"))


def dram_tier(desk: Desk) -> None:
    """On a prefill node, of all it reads; what is kept is served without the storage NIC."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, step in (("one path", ONE_PATH), ("dual (paper)", DUAL), ("split (ours)", OURS)):
        for nbytes in _DRAM_BYTES:
            case = replace(_SLOW, step=step, overrides=(*_SLOW_NICS, f"simulation.dram_bytes={nbytes}"))
            jct_s = desk.runner.jct_s(case)
            lines.setdefault(name, []).append((nbytes / 1e9, jct_s))
            desk.tell(Comparison("dram_tier", f"jct_{step.name}_{nbytes // 10**9}gb", case.setup, jct_s, "s"))
    desk.series["dram_tier"] = {
        "x": "GB of DRAM a prefill node keeps blocks in",
        "y": "job completion time (s), NICs a quarter of the paper's",
        "lines": lines,
    }


def tool_waits(desk: Desk) -> None:
    """Made waits, exponential; and with NICs that decide, reading ahead meanwhile, into kept DRAM."""
    for wait_s in _WAITS_S:
        case = replace(BASE, tool_wait_s=wait_s)
        for step in (ONE_PATH, DUAL, OURS):
            jct_s = desk.runner.jct_s(case.served(step))
            desk.tell(Comparison("tool_waits", f"jct_{step.name}_{wait_s:g}s", case.setup, jct_s, "s"))
    waiting = replace(_SLOW, tool_wait_s=_WAITS_S[-1])
    for name, more in _MEMORY.items():
        case = replace(waiting, overrides=(*waiting.overrides, *more))
        for step in (ONE_PATH, DUAL, OURS):
            outcome = desk.runner.run(case.served(step))
            setup = f"{case.setup}, NICs a quarter of the paper's, waits of {_WAITS_S[-1]:g} s"
            desk.tell(Comparison("tool_waits", f"jct_{step.name}_{name}", setup, outcome.jct_s, "s"))
            if outcome.ttft_s is not None:
                desk.tell(Comparison("tool_waits", f"ttft_{step.name}_{name}", setup, outcome.ttft_s, "s"))


def traces(desk: Desk) -> None:
    """Recorded agents, with and without their tools' time; the bundled sample where none are given."""
    for trace in desk.traces or (None,):
        for wait_scale in (0.0, 1.0):
            case = Case(
                BASE.model,
                trace,
                BASE.prefill_nodes,
                BASE.decode_nodes,
                BASE.agents,
                OURS,
                overrides=("task.max_context_tokens=131072",),
                tool_wait_scale=wait_scale,
            )
            jct_s = {step.name: desk.runner.jct_s(case.served(step)) for step in (ONE_PATH, DUAL, OURS)}
            name = f"{(trace or 'sample').rpartition('/')[2].partition('.')[0]}_waits_x{wait_scale:g}"
            for other in (ONE_PATH, DUAL):
                ratio = jct_s[other.name] / jct_s[OURS.name]
                desk.tell(Comparison("traces", f"{other.name}_over_split_{name}", case.setup, ratio, "x"))

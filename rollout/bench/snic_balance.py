"""How evenly the storage NICs are used, second by second, while they are busy but not all full.

DualPath (arXiv 2602.21548, section 7) reports the busiest NIC over the mean in windows of 1 s. Only windows
at 40 to 90 % of what all NICs together can move are judged: an idle second has no balance, a full one no
choice. The rate of the study is such that reading takes about two thirds of what the GPUs need. Windows are
seconds of full size. A node of the paper has 8 GPUs, so its NIC serves 8 times as many requests in a second
as one of ours, whose node has one GPU; windows of 8 s have as many, and are told beside.
"""

from __future__ import annotations

import statistics
from typing import Any

from rollout.bench.bench import NO_GOAL, Bench, Goal
from rollout.bench.ladder import DUAL, DUAL_SCHEDULER, SPLIT, Step
from rollout.bench.one_replay import Replayed
from rollout.bench.rounds import Runs
from rollout.bench.steady import SCALE
from rollout.bench.workload import EqualAgents

LOAD = (0.4, 0.9)
UNEVEN = 1.3
"""A load tells something if taking the nodes in turn leaves the NICs at least so uneven."""
_GOAL = Goal(1.10, "lower")
GPUS_OF_PAPER_NODE = 8
SNIC_BYTES_PER_S = 2.8e9
"""Of each node, at full size."""
AGENTS = EqualAgents(agents=32, rounds=4, context_tokens=16_384, append_tokens=429, output_tokens=8)


def snic_balance(bench: Bench) -> None:
    """max / mean with nodes taken in turn, with the paper's scheduler, and with split reads."""
    agents = AGENTS
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    plan = bench.equal_agents(
        (DUAL, DUAL_SCHEDULER, SPLIT),
        agents,
        "cluster=1p2d",
        "setting=paper",
        f"cluster.snic_bytes_per_s={SNIC_BYTES_PER_S:g}",
        "engines.decode_kv_bytes=2000000000",
        scale=SCALE,
        time_scale=0.5,
    )
    runs = bench.replay("snic_balance", plan)
    tell_snic_balance(bench, runs, unscheduled=DUAL, scheduled=(DUAL_SCHEDULER, SPLIT))


def tell_snic_balance(bench: Bench, runs: Runs, *, unscheduled: Step, scheduled: tuple[Step, ...]) -> None:
    """max / mean of each step; judged where `unscheduled` is uneven enough."""
    _tell(bench, runs, unscheduled, NO_GOAL)
    uneven = [run for run in runs.of(unscheduled) if (of_run(run) or 0.0) >= UNEVEN]
    for step in scheduled:
        _tell(bench, runs, step, _GOAL if uneven else NO_GOAL)
    if not uneven:
        bench.findings.left_out["snic_max_over_mean: its verdict"] = (
            f"taking nodes in turn gave less than {UNEVEN} at this load"
        )


def _tell(bench: Bench, runs: Runs, step: Step, goal: Goal) -> None:
    for window_s, judged in ((1, goal), (GPUS_OF_PAPER_NODE, NO_GOAL)):

        def value(window_s: int = window_s) -> float:
            return statistics.median(
                uneven for run in runs.of(step) if (uneven := of_run(run, window_s)) is not None
            )

        unit = f"busiest NIC / mean, {window_s} s windows at 40-90 % load"
        bench.tell(f"snic_max_over_mean_{step.name}_{window_s}s", value, unit, judged, runs, step)


def of_run(run: Replayed, window_s: float = 1.0) -> float | None:
    """Mean over the run's windows of `window_s` of full size with the right load; None if it has none."""
    snic = run.replay["snic"]
    num = max(1, round(window_s / (run.time_scale * snic["window_s"])))
    windows, lengths_s = _merged(snic["bytes"], snic["lengths_s"], num)
    return mean_max_over_avg(windows, lengths_s, run.replay["rates"]["snic_bytes_per_s"])


def _merged(
    windows: list[list[int]], lengths_s: list[float], num: int
) -> tuple[list[list[int]], list[float]]:
    """Every `num` of them as one; what remains at the end is left out."""
    starts = range(0, len(windows) - num + 1, num)
    merged = [[sum(node) for node in zip(*windows[start : start + num], strict=True)] for start in starts]
    return merged, [sum(lengths_s[start : start + num]) for start in starts]


def mean_max_over_avg(windows: list[list[int]], lengths_s: list[float], rate: Any) -> float | None:
    """`windows`: bytes of each NIC in each window; `rate`: bytes/s of one NIC, None without a limit."""
    if not rate:
        return None
    ratios = []
    for window, length_s in zip(windows, lengths_s, strict=True):
        load = sum(window) / (rate * len(window) * length_s)
        if LOAD[0] <= load <= LOAD[1]:
            ratios.append(max(window) * len(window) / sum(window))
    return statistics.fmean(ratios) if ratios else None

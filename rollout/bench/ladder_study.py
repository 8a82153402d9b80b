"""The whole ladder with the paper's rates, on equal agents and on recorded ones."""

from __future__ import annotations

from itertools import pairwise

from rollout.bench.bench import NO_GOAL, QUIET, Bench
from rollout.bench.ladder import BASIC, DUAL, DUAL_SCHEDULER, LADDER, NO_LAYERWISE, ORACLE, SPLIT, Step
from rollout.bench.rounds import Plan, Runs
from rollout.bench.workload import EqualAgents

PAPER_CUTS = {"layerwise": 0.1721, "dual": 0.3819, "scheduler": 0.4562}
"""By how much the JCT falls below that of the ladder's foot when each is added (arXiv 2602.21548,
section 7.4)."""
PAPER_BEST = 1.87
"""The largest JCT of basic / dual path with its scheduler in the paper."""
_SCALE = 82.0
_HBM_BYTES = 40e9
"""Of a GPU, for KV: what bounds a batch without layerwise prefill. Assumed, as for decode engines."""
_SETTING = ("cluster=1p2d", "setting=paper", f"engines.prefill_hbm_bytes={_HBM_BYTES / _SCALE:.0f}")
_TIME_SCALE = 0.5
_TRACE_TIME_SCALE = 0.8
"""Twice as fast, the host's own work on prompts, which is more with two paths, took 4 % of the JCT."""


def ladder_equal(bench: Bench) -> None:
    """Equal agents at `setting=paper`."""
    agents = EqualAgents(agents=40, rounds=2, context_tokens=32_768, append_tokens=429, output_tokens=32)
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    plan = bench.equal_agents(LADDER, agents, *_SETTING, scale=_SCALE, time_scale=_TIME_SCALE)
    _ladder(bench, "ladder_equal", plan, bench.reported_rounds)


def ladder_trace(bench: Bench) -> None:
    """Recorded agents at `setting=paper`."""
    overrides = (
        f"trace={bench.trace or 'null'}",
        "trace_window=2",
        f"num_agents={8 if bench.quick else 64}",
        "task.max_context_tokens=65536",
    )
    plan = Plan(LADDER, (*_SETTING, *QUIET, f"scale={_SCALE:g}", *overrides), _TRACE_TIME_SCALE)
    _ladder(bench, "ladder_trace", plan, bench.reported_rounds)


def _ladder(bench: Bench, name: str, plan: Plan, num_rounds: int) -> None:
    runs = bench.replay(name, plan, num_rounds)
    for lower, upper in pairwise(LADDER):
        bench.tell_ratio(f"{name}_{lower.name}_over_{upper.name}", lower, upper, runs)
    for added, step in (
        ("layerwise", BASIC),
        ("dual", DUAL),
        ("scheduler", DUAL_SCHEDULER),
        ("split", SPLIT),
    ):
        _tell_cut(bench, f"{name}_cut_{added}", step, runs)
    bench.tell_ratio(f"{name}_basic_over_dual_scheduler", BASIC, DUAL_SCHEDULER, runs)
    bench.tell_ratio(f"{name}_basic_over_split", BASIC, SPLIT, runs)
    bench.tell_ratio(f"{name}_split_over_oracle", SPLIT, ORACLE, runs)
    for step in LADDER:
        _tell_tail(bench, f"{name}_tail_{step.name}", step, runs)
    bench.findings.series[name]["paper"] = {"cuts": PAPER_CUTS, "basic_over_dual_scheduler_best": PAPER_BEST}


def _tell_cut(bench: Bench, name: str, step: Step, runs: Runs) -> None:
    bench.tell(
        name,
        lambda: 1 - runs.full_s(step) / runs.full_s(NO_LAYERWISE),
        "share of the JCT without layerwise",
        NO_GOAL,
        runs,
        step,
        NO_LAYERWISE,
    )


def _tell_tail(bench: Bench, name: str, step: Step, runs: Runs) -> None:
    bench.tell(
        name,
        lambda: runs.median(step, lambda run: float(run.summary["steps"][0]["tail_frac"])),
        "share of JCT after 90 % had ended",
        NO_GOAL,
        runs,
        step,
    )

"""What KV traffic costs decoding: TPOT with it over TPOT without, with collectives on the compute NICs.

A decode step hangs on how many rows it has, and a run without KV traffic gathers other batches. So each
TPOT is first divided by what the model says its own steps take; what remains is delay. Without KV traffic:
the oracle, in which collectives pass the compute NICs as ever and no KV byte does.
"""

from __future__ import annotations

from rollout.bench.bench import NO_GOAL, Bench, Goal
from rollout.bench.ladder import ORACLE, SPLIT, Step
from rollout.bench.one_replay import Replayed
from rollout.bench.rounds import Runs
from rollout.bench.workload import EqualAgents

CLASSES_OFF = SPLIT.with_overrides("classes_off", "cluster.traffic_classes=false")


def decode_tpot(bench: Bench) -> None:
    """Delay with KV traffic over delay without, classes on and off."""
    agents = EqualAgents(agents=24, rounds=2, context_tokens=32_768, append_tokens=429, output_tokens=96)
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=16)
    plan = bench.equal_agents(
        (SPLIT, CLASSES_OFF, ORACLE), agents, "cluster=1p2d", "setting=paper", scale=82, time_scale=0.7
    )
    runs = bench.replay("decode_tpot", plan)
    _tell(bench, runs, SPLIT, "classes_on", Goal(1.05, "lower"))
    _tell(bench, runs, CLASSES_OFF, "classes_off", NO_GOAL)


def _tell(bench: Bench, runs: Runs, step: Step, name: str, goal: Goal) -> None:
    bench.tell(
        f"tpot_with_over_without_kv_{name}",
        lambda: runs.median(step, delay) / runs.median(ORACLE, delay),
        "ratio of delays",
        goal,
        runs,
        step,
        ORACLE,
    )


def delay(run: Replayed) -> float:
    """Mean TPOT over what the model says the steps take."""
    return float(run.summary["tpot_s"]["mean"] / run.replay["decode"]["modelled_tpot_s"])

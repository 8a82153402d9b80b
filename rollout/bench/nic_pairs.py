"""Pairs of clusters in which as many storage NICs carry the hits: they should take equally long.

The paper compares them to show that only the number of NICs in use decides (arXiv 2602.21548, section 7.3).
The same agents do the same rounds on each cluster, with the NIC rate of one of them, so low that
reading decides everywhere: basic reads through the P prefill nodes' NICs, dual path through all P + D.

    basic 1P1D, basic 1P2D: one NIC      dual 1P1D, basic 2P1D: two      dual 2P1D, dual 1P2D: three
"""

from __future__ import annotations

from rollout.bench.bench import Bench, Goal
from rollout.bench.ladder import BASIC, DUAL_SCHEDULER, Step
from rollout.bench.rounds import Runs
from rollout.bench.steady import SCALE, SNIC_BYTES_PER_S
from rollout.bench.workload import EqualAgents


def nic_pairs(bench: Bench) -> None:
    """|JCT / JCT - 1| of each pair."""
    pairs = (
        (_on(BASIC, "1p1d"), _on(BASIC, "1p2d")),
        (_on(DUAL_SCHEDULER, "1p1d"), _on(BASIC, "2p1d")),
        (_on(DUAL_SCHEDULER, "2p1d"), _on(DUAL_SCHEDULER, "1p2d")),
    )
    agents = EqualAgents(agents=16, rounds=2, context_tokens=16_384, append_tokens=429, output_tokens=8)
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    steps = [step for pair in pairs for step in pair]
    plan = bench.equal_agents(steps, agents, "setting=paper", scale=SCALE, time_scale=1.4)
    runs = bench.replay("nic_pairs", plan)
    for one, other in pairs:
        _tell_difference(bench, runs, one, other)


def _tell_difference(bench: Bench, runs: Runs, one: Step, other: Step) -> None:
    bench.tell(
        f"{one.name}_against_{other.name}",
        lambda: abs(runs.full_s(one) / runs.full_s(other) - 1),
        "difference of JCTs, share",
        Goal(0.10, "lower"),
        runs,
        one,
        other,
    )


def _on(step: Step, cluster: str) -> Step:
    return step.with_overrides(
        cluster, f"cluster={cluster}", f"cluster.snic_bytes_per_s={SNIC_BYTES_PER_S:g}"
    )

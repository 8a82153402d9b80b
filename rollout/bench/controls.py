"""Where dual path has nothing to win, it must lose nothing."""

from __future__ import annotations

from rollout.bench.bench import Bench, Goal
from rollout.bench.ladder import BASIC, SPLIT
from rollout.bench.workload import EqualAgents

_GOAL = Goal(0.98)


def low_reuse(bench: Bench) -> None:
    """Few turns that append as much as they reuse: the GPUs decide."""
    agents = EqualAgents(agents=16, rounds=2, context_tokens=4_096, append_tokens=4_096, output_tokens=32)
    if bench.quick:
        agents = EqualAgents(agents=4, rounds=1, context_tokens=1_024, append_tokens=1_024, output_tokens=4)
    _control(bench, "control_low_reuse", agents, time_scale=2.2)


def one_agent(bench: Bench) -> None:
    """Nobody else's reads to share a NIC with."""
    agents = EqualAgents(agents=1, rounds=6, context_tokens=32_768, append_tokens=429, output_tokens=32)
    if bench.quick:
        agents = EqualAgents(agents=1, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    _control(bench, "control_one_agent", agents, time_scale=1.0)


def _control(bench: Bench, name: str, agents: EqualAgents, time_scale: float) -> None:
    plan = bench.equal_agents(
        (BASIC, SPLIT), agents, "cluster=1p2d", "setting=paper", scale=41, time_scale=time_scale
    )
    bench.tell_ratio(f"{name}_basic_over_split", BASIC, SPLIT, bench.replay(name, plan), _GOAL)

"""How evenly the engines of a group compute attention: batches by quota against batches by count.

Two prefill engines form an expert-parallel group, so a forward of either takes as long as the longer.
Contexts of 8k to 56k tokens make batches of equal length unequal work. No KV byte moves (`engines.oracle`):
what is compared is which prompts are computed together, with enough of them waiting for several full batches:
the paper looks at the first 5 % of a job, when all agents wait (arXiv 2602.21548, section 7).
"""

from __future__ import annotations

from rollout.bench.bench import NO_GOAL, Bench, Goal
from rollout.bench.ladder import ORACLE, Step
from rollout.bench.rounds import Runs
from rollout.bench.workload import EqualAgents

QUOTA_S = 0.1
"""A third of the default: 48 prompts wait for each engine, not thousands, and make five batches so."""
COUNT_TOKENS = 4_096
"""About as many prompts as the quota lets in on average, so that both batch alike."""
QUOTA = ORACLE.with_overrides("quota", "scheduler.batching=quota", f"scheduler.attention_quota_s={QUOTA_S}")
COUNT = ORACLE.with_overrides(
    "count", "scheduler.batching=count", f"engines.prefill_batch_tokens={COUNT_TOKENS}"
)


def attention_balance(bench: Bench) -> None:
    """max / avg of attention across the group in rounds that both take part in."""
    agents = EqualAgents(
        agents=96,
        rounds=3,
        context_tokens=32_768,
        append_tokens=429,
        output_tokens=8,
        spread_tokens=49_152,
    )
    if bench.quick:
        agents = EqualAgents(16, 2, 16_384, 429, 4, spread_tokens=16_384)
    plan = bench.equal_agents(
        (COUNT, QUOTA),
        agents,
        "cluster=2p1d",
        "engines.group_lockstep=true",
        scale=82,
        time_scale=1.3,
    )
    runs = bench.replay("attention_balance", plan)
    _tell(bench, runs, COUNT, "attention_max_over_avg_count", NO_GOAL)
    _tell(bench, runs, QUOTA, "attention_max_over_avg_quota", Goal(1.10, "lower"))


def _tell(bench: Bench, runs: Runs, step: Step, name: str, goal: Goal) -> None:
    bench.tell(
        name,
        lambda: runs.median(step, lambda run: float(run.replay["attention"]["max_over_avg"])),
        "longest attention / mean of the group",
        goal,
        runs,
        step,
    )

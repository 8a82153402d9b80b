"""What dual path gives on top of what a cluster may have anyway: memory for KV, and time while tools work.

The DRAM tier keeps blocks read lately. 20 GB of a GPU's share of its node at full size, which is 160 GB of
a node with 8 GPUs. With `tool_wait_scale=1` agents wait as long for their tools as was recorded, and NICs
idle meanwhile.
"""

from __future__ import annotations

from rollout.bench.bench import QUIET, Bench
from rollout.bench.ladder import BASIC, SPLIT
from rollout.bench.rounds import Plan
from rollout.bench.steady import SNIC_BYTES_PER_S
from rollout.bench.workload import EqualAgents

DRAM_BYTES = 20e9
"""Of each node, at full size, for one GPU."""
_SCALE = 41.0
_WAITS_TIME_SCALE = 3.0
"""Recorded waits are 25 s on the mean, up to 120 s."""


def dram_tier(bench: Bench) -> None:
    """basic and split, with and without a DRAM tier, on equal agents, where storage decides."""
    agents = EqualAgents(agents=24, rounds=3, context_tokens=16_384, append_tokens=429, output_tokens=8)
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    basic, split = (step.with_overrides("dram", *_dram()) for step in (BASIC, SPLIT))
    plan = bench.equal_agents(
        (BASIC, basic, SPLIT, split),
        agents,
        "cluster=1p2d",
        "setting=storage_bound",
        f"cluster.snic_bytes_per_s={SNIC_BYTES_PER_S:g}",
        "engines.decode_kv_bytes=600000000",
        scale=_SCALE,
        time_scale=1.4,
    )
    runs = bench.replay("dram_tier", plan, bench.reported_rounds)
    bench.tell_ratio("dram_basic_alone_over_basic_dram", BASIC, basic, runs)
    bench.tell_ratio("dram_basic_dram_over_split_dram", basic, split, runs)
    bench.tell_ratio("dram_basic_alone_over_split_alone", BASIC, SPLIT, runs)
    bench.tell_ratio("dram_split_alone_over_split_dram", SPLIT, split, runs)


def tool_waits(bench: Bench) -> None:
    """basic and split on recorded agents that wait for their tools."""
    overrides = (
        f"trace={bench.trace or 'null'}",
        "trace_window=2",
        f"num_agents={8 if bench.quick else 64}",
        "task.max_context_tokens=65536",
        "tool_wait_scale=1",
        *QUIET,
        "cluster=1p2d",
        "setting=paper",
        f"scale={_SCALE:g}",
    )
    basic, split = (
        step.with_overrides("prefetch", *_dram(), "scheduler.prefetch=true") for step in (BASIC, SPLIT)
    )
    runs = bench.replay(
        "tool_waits", Plan((BASIC, basic, SPLIT, split), overrides, _WAITS_TIME_SCALE), bench.reported_rounds
    )
    bench.tell_ratio("tool_waits_basic_over_split", BASIC, SPLIT, runs)
    bench.tell_ratio("tool_waits_basic_over_basic_prefetch", BASIC, basic, runs)
    bench.tell_ratio("tool_waits_basic_prefetch_over_split_prefetch", basic, split, runs)


def _dram() -> tuple[str, ...]:
    """The tier may be half of the staging memory at most."""
    dram_bytes = round(DRAM_BYTES / _SCALE)
    return f"kvstore.dram_bytes={dram_bytes}", f"kvstore.staging_bytes={2 * dram_bytes}"

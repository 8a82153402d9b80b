"""Steady and storage-bound: what using all storage NICs gives where nothing else is short.

Equal agents, at least 8 for each storage NIC, rates lowered until reading through all NICs takes three times
what the GPUs need (`setting=storage_bound`). With 1P2D the bound of basic / split is 3: three NICs for one.
"""

from __future__ import annotations

from rollout.bench.bench import NO_GOAL, Bench, Goal
from rollout.bench.ladder import BASIC, DUAL_SCHEDULER, ORACLE, SPLIT
from rollout.bench.one_replay import Replayed
from rollout.bench.rounds import Runs
from rollout.bench.workload import EqualAgents

# The setting reckons with the least time that the GPUs could take, which gives 8.2e8 bytes/s. Each forward
# costs something by itself, so they take more; at this rate reading takes three times what they do take, and
# that is the definition. HBM as this host's memory allows: room for all agents' contexts.
SNIC_BYTES_PER_S = 5.8e8
_SETTING = (
    "setting=storage_bound",
    f"cluster.snic_bytes_per_s={SNIC_BYTES_PER_S:g}",
    "engines.decode_kv_bytes=2000000000",
)
TERMS_APART = 3.0
"""Terms nearer to one another overlap badly at the ends of a run, whatever is done."""
SCALE = 10.25
"""Large pieces: each layer's piece of a block costs the host about the same CPU whatever its size."""


def steady(bench: Bench) -> None:
    """1P2D: basic / split, basic / dual with the scheduler, and split against its bound."""
    agents = EqualAgents(agents=24, rounds=3, context_tokens=16_384, append_tokens=429, output_tokens=8)
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    plan = bench.equal_agents(
        (BASIC, DUAL_SCHEDULER, SPLIT, ORACLE),
        agents,
        "cluster=1p2d",
        *_SETTING,
        scale=SCALE,
        time_scale=1.4,
    )
    runs = bench.replay("steady_1p2d", plan)
    bench.tell_ratio("steady_basic_over_split", BASIC, SPLIT, runs, Goal(2.4))
    bench.tell_ratio("steady_basic_over_dual_scheduler", BASIC, DUAL_SCHEDULER, runs, Goal(2.0))
    _tell_bound(bench, "1p2d", runs)


def steady_2p4d(bench: Bench) -> None:
    """split against its bound with twice the nodes."""
    agents = EqualAgents(agents=48, rounds=2, context_tokens=16_384, append_tokens=429, output_tokens=8)
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    plan = bench.equal_agents(
        (SPLIT, ORACLE),
        agents,
        "cluster=2p4d",
        *_SETTING,
        scale=SCALE,
        time_scale=0.47,
    )
    _tell_bound(bench, "2p4d", bench.replay("steady_2p4d", plan))


def _tell_bound(bench: Bench, where: str, runs: Runs) -> None:
    """JCT of split over the larger of: the time its bytes take through all NICs, the oracle's JCT."""

    def apart() -> float:
        reading_s, oracle_s = runs.median(SPLIT, reading_full_s), runs.full_s(ORACLE)
        return max(reading_s, oracle_s) / min(reading_s, oracle_s)

    def over_bound() -> float:
        return runs.full_s(SPLIT) / max(runs.median(SPLIT, reading_full_s), runs.full_s(ORACLE))

    goal = Goal(1.10, "lower")
    if runs.has(SPLIT, ORACLE) and apart() < TERMS_APART:
        bench.findings.left_out[f"steady_{where}_split_over_bound: its verdict"] = (
            f"reading and the oracle take {apart():.2f} times one another, less than {TERMS_APART:g}"
        )
        goal = NO_GOAL
    bench.tell(f"steady_{where}_terms_apart", apart, "reading / oracle", NO_GOAL, runs, SPLIT, ORACLE)
    bench.tell(f"steady_{where}_split_over_bound", over_bound, "JCT / bound", goal, runs, SPLIT, ORACLE)


def reading_full_s(run: Replayed) -> float:
    """What the bytes that were read take through all storage NICs, in seconds of full size."""
    rate = run.replay["rates"]["snic_bytes_per_s"]
    num_nics = len(run.replay["snic"]["bytes"][0])
    return float(run.time_scale * run.read_bytes / (rate * num_nics))

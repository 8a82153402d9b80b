"""A real model on limited NICs: the same order as paced engines, and the same tokens on every path.

SmolLM2 in float32, two agents at 2k to 4k tokens. Its KV is real, its compute takes what this machine
takes, so CPU use is high by nature and no run of it is refused for that.
"""

from __future__ import annotations

from pathlib import Path

from rollout.bench.bench import NO_GOAL, Bench, Goal
from rollout.bench.ladder import BASIC, DUAL_SCHEDULER, SPLIT
from rollout.bench.rounds import Plan, Runs
from rollout.bench.workload import EqualAgents

MODEL = Path("models/smollm2-135m-instruct")
SNIC_BYTES_PER_S = 30e6
"""A context of 3,000 tokens has 138 MB of KV: 4.6 s through one NIC."""
STEPS = (BASIC, DUAL_SCHEDULER, SPLIT)


def real_model(bench: Bench) -> None:
    """basic / split, and whether all paths gave the same tokens."""
    if not MODEL.is_dir():
        bench.findings.left_out["real_model"] = f"{MODEL} is not there; scripts/fetch_model gets it"
        return
    agents = EqualAgents(agents=2, rounds=3, context_tokens=3_000, append_tokens=100, output_tokens=8)
    if bench.quick:
        agents = EqualAgents(agents=2, rounds=1, context_tokens=512, append_tokens=64, output_tokens=4)
    path = bench.folder / f"{agents.name}.csv"
    agents.write(path)
    overrides = (
        *agents.overrides(path),
        "engines=transformers",
        f"model.path={MODEL}",
        "cluster=1p2d",
        f"cluster.snic_bytes_per_s={SNIC_BYTES_PER_S:g}",
        "cluster.cnic_bytes_per_s=1e9",
        "task.max_context_tokens=4096",
    )
    runs = bench.replay(
        "real_model", Plan(STEPS, overrides, time_scale=1.0, cpu_limit=1.0), bench.reported_rounds
    )
    bench.tell_ratio("real_model_basic_over_dual_scheduler", BASIC, DUAL_SCHEDULER, runs)
    bench.tell_ratio("real_model_basic_over_split", BASIC, SPLIT, runs, Goal(1.0))
    bench.tell(
        "real_model_runs_with_other_tokens", lambda: _num_others(runs), "runs", Goal(0, "lower"), runs, *STEPS
    )
    bench.tell("real_model_runs", lambda: sum(map(len, runs.by_step.values())), "runs", NO_GOAL, runs, *STEPS)


def _num_others(runs: Runs) -> float:
    """Runs whose tokens differ from the first one's."""
    digests = [run.tokens_digest for done in runs.by_step.values() for run in done]
    return sum(digest != digests[0] for digest in digests)

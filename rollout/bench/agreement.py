"""Does the simulator say what a paced run measures? Each step of the ladder, run and simulated.

What a paced run adds is real: messages between processes, copies in this host's memory, its CPU. What the
simulator leaves out must stay below a tenth of the JCT.
"""

from __future__ import annotations

from engines.sim.result import SimResult
from engines.sim.simulate import simulate
from rollout.bench.bench import Bench, Goal
from rollout.bench.ladder import LADDER, Step
from rollout.bench.rounds import Plan, Runs
from rollout.bench.twin import twin_agents, twin_spec
from rollout.bench.workload import EqualAgents
from rollout.compose import load_config
from rollout.replay import plan_replay

SCALE = 10.25
"""As of the steady study: large pieces, so that the NICs are what is short and not the host's CPU."""
_HBM_BYTES = 40e9
WITHIN = 0.1


def agreement(bench: Bench) -> None:
    """Simulated over paced JCT, step by step; and the largest distance from 1."""
    agents = EqualAgents(agents=24, rounds=3, context_tokens=16_384, append_tokens=429, output_tokens=8)
    if bench.quick:
        agents = EqualAgents(agents=8, rounds=2, context_tokens=8_192, append_tokens=429, output_tokens=4)
    plan = bench.equal_agents(
        LADDER,
        agents,
        "cluster=1p2d",
        "setting=paper",
        "cluster.snic_bytes_per_s=2e9",
        f"engines.prefill_hbm_bytes={_HBM_BYTES / SCALE:.0f}",
        "engines.decode_kv_bytes=2000000000",
        scale=SCALE,
        time_scale=0.7,
    )
    runs = bench.replay("agreement", plan)
    simulated = {step.name: simulated_step(plan, runs.time_scale, step) for step in LADDER}
    bench.findings.series["agreement"]["simulated"] = {name: _told(of) for name, of in simulated.items()}
    for step in LADDER:
        _tell(bench, f"simulated_over_paced_{step.name}", step, runs, simulated[step.name])
    bench.tell(
        "simulated_over_paced_worst",
        lambda: max(abs(simulated[step.name].jct_s / runs.full_s(step) - 1) for step in LADDER),
        "largest |simulated / paced JCT - 1|",
        Goal(WITHIN, "lower"),
        runs,
        *LADDER,
    )


def simulated_step(plan: Plan, time_scale: float, step: Step) -> SimResult:
    """What the simulator makes of a step of a plan that was run at this pace."""
    line = ["job=replay", "monitor=off", *plan.overrides, *step.overrides, f"time_scale={time_scale:g}"]
    replay = plan_replay(load_config(line))
    return simulate(twin_spec(replay), twin_agents(replay))


def _tell(bench: Bench, name: str, step: Step, runs: Runs, simulated: SimResult) -> None:
    def ratio() -> float:
        return simulated.jct_s / runs.full_s(step)

    bench.tell(name, ratio, "ratio of JCTs", Goal(None), runs, step)


def _told(result: SimResult) -> dict[str, float]:
    return {"jct_s": result.jct_s, "events": result.num_events, "cpu_s": round(result.cpu_s, 3)}

"""The simulation that a paced replay is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.sim.simulate import simulate
from rollout.bench.agreement import simulated_step
from rollout.bench.bench import QUIET
from rollout.bench.ladder import BASIC, DUAL_SCHEDULER, LADDER, ORACLE, SPLIT
from rollout.bench.rounds import Plan
from rollout.bench.twin import twin_agents, twin_spec
from rollout.bench.workload import EqualAgents
from rollout.compose import load_config
from rollout.replay import plan_replay

SCALE = 10.25
AGENTS = EqualAgents(agents=24, rounds=3, context_tokens=16_384, append_tokens=429, output_tokens=8)


def storage_bound(folder: Path) -> Plan:
    """As the steady study has it."""
    path = folder / "agents.csv"
    AGENTS.write(path)
    overrides = (
        *AGENTS.overrides(path),
        *QUIET,
        f"scale={SCALE:g}",
        "cluster=1p2d",
        "setting=paper",
        "cluster.snic_bytes_per_s=6.8e8",
        "engines.decode_kv_bytes=2000000000",
    )
    return Plan(LADDER, overrides, time_scale=1.4)


def test_a_twin_is_of_full_size_and_has_as_many_blocks_and_slower_periods(tmp_path: Path) -> None:
    plan = storage_bound(tmp_path)
    replay = plan_replay(load_config(["job=replay", *plan.overrides, "time_scale=4"]))
    spec, agents = twin_spec(replay), twin_agents(replay)
    assert spec.block_bytes == 64 * 40_016
    assert spec.cluster.rates.snic_bytes_per_s == 6.8e8
    assert spec.scheduler.fetch_period_s == pytest.approx(0.04)
    # 1e10 bytes of full size, less what records add and what a decode engine keeps for itself.
    assert 3800 <= spec.cluster.prefill_staging_bytes // spec.block_bytes <= 1e10 / spec.block_bytes
    assert spec.cluster.decode_staging_bytes < spec.cluster.prefill_staging_bytes
    assert len(agents) == AGENTS.agents
    assert [len(agent.rounds) for agent in agents] == [AGENTS.rounds] * AGENTS.agents
    result = simulate(spec, agents)
    assert result.num_finished == AGENTS.agents
    assert int(result.turns.hit_tokens.sum()) * 40_016 == pytest.approx(sum(result.read_bytes.values()))


def test_where_storage_decides_the_ladder_ends_near_the_bound_of_its_storage_nics(tmp_path: Path) -> None:
    plan = storage_bound(tmp_path)
    jct_s = {step.name: simulated_step(plan, plan.time_scale, step).jct_s for step in LADDER}
    for step in (DUAL_SCHEDULER, SPLIT):
        assert 2.5 < jct_s[BASIC.name] / jct_s[step.name] < 3.05
    assert jct_s[ORACLE.name] < jct_s[SPLIT.name]
    # A replay's pace changes nothing but the weight of its periods.
    slow_s = simulated_step(plan, 0.1, SPLIT).jct_s
    assert slow_s == pytest.approx(jct_s[SPLIT.name], rel=0.03)

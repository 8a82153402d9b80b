"""What holds of every simulation, whatever its cluster and agents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.sim.simulated_cluster import SimulatedCluster
from engines.sim.spec import SimCluster, SimSpec
from engines.sim.workload import SimAgent, SimRounds
from tests.engines.sim.some_clusters import BLOCK, BLOCK_BYTES, LAYERS, PROFILE, cluster, run, scheduler, spec

COUNT = st.integers(1, 3)
ROWS = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 25)), min_size=1, max_size=5)


@st.composite
def clusters(draw: st.DrawFn) -> SimCluster:
    prefill, decode = draw(COUNT), draw(COUNT)
    return cluster(
        prefill_nodes=prefill,
        decode_nodes=decode,
        gpus_per_node=draw(st.integers(1, 2)),
        rates=replace(cluster().rates, memory_bytes_per_s=draw(st.sampled_from([None, 2e6, 1e9]))),
        storage_bytes_per_s=draw(st.sampled_from([None, 1.5e6])),
        # The longest prompt has 5 x (90 + 25) tokens and 100 of history: 68 blocks.
        prefill_staging_bytes=draw(st.integers(68, 200)) * BLOCK_BYTES,
        decode_staging_bytes=draw(st.integers(68, 200)) * BLOCK_BYTES,
        dram_bytes=draw(st.sampled_from([0, 100])) * BLOCK_BYTES,
        prefill_hbm_bytes=100 * BLOCK_BYTES,
        decode_kv_bytes=draw(st.integers(68, 200)) * BLOCK_BYTES,
        decode_max_requests=draw(st.integers(1, 4)),
        prefill_ep_nodes=draw(st.sampled_from([0, 1, prefill])),
        decode_ep_nodes=draw(st.sampled_from([0, 1, decode])),
    )


@st.composite
def specs(draw: st.DrawFn) -> SimSpec:
    of_scheduler = scheduler(
        read_plan=draw(st.sampled_from(["basic", "dual", "split", "alternate"])),
        placement=draw(st.sampled_from(["least_loaded", "round_robin"])),
        order=draw(st.sampled_from(["fifo", "similar", "longest_remaining"])),
        fetch_period_s=draw(st.sampled_from([0.0, 0.002, 0.1])),
        attention_quota_s=draw(st.sampled_from([1e-4, 0.3])),
        rendezvous=draw(st.sampled_from(["prefill_first", "independent"])),
    )
    nodes = draw(clusters())
    of_scheduler = replace(of_scheduler, prefetch=bool(nodes.dram_bytes) and draw(st.booleans()))
    profile = replace(PROFILE, decode_s=(1e-2, 1e-3, 1e-6), collective_bytes=(100, 200))
    return spec(
        nodes,
        of_scheduler,
        profile,
        layerwise=draw(st.booleans()),
        oracle=draw(st.sampled_from([False, False, True])),
        sharing=draw(st.sampled_from(["closed_form", "max_min"])),
        prefill_load_limit_tokens=draw(st.sampled_from([50, 2000])),
    )


@st.composite
def some_agents(draw: st.DrawFn) -> list[SimAgent]:
    made: list[SimAgent] = []
    for number in range(draw(st.integers(1, 6))):
        append, output = np.array(draw(ROWS), np.int32).T
        wait_s = np.full(len(append), draw(st.sampled_from([0.0, 0.5])), np.float32)
        keep = np.full(len(append), draw(st.sampled_from([-1, -1, 30])), np.int32)
        made.append(
            SimAgent(
                f"agent-{number}",
                SimRounds(append, output, wait_s, keep),
                history_tokens=draw(st.integers(0, 100)),
                start_s=draw(st.sampled_from([0.0, 0.2])),
            )
        )
    return made


@settings(max_examples=30)
@given(specs(), some_agents())
def test_every_turn_ends_in_order_bytes_are_those_of_hits_and_nothing_stays_reserved(
    of_spec: SimSpec, agents: list[SimAgent]
) -> None:
    simulated = SimulatedCluster(of_spec, agents)
    simulated.run()
    turns = simulated.turns.table()
    turns.check()
    assert not np.isnan(turns.end_s).any()
    for index, agent in enumerate(agents):
        own = turns.agent == index
        submit_s, end_s = turns.submit_s[own], turns.end_s[own]
        np.testing.assert_allclose(submit_s[0], agent.start_s)
        np.testing.assert_allclose(submit_s[1:], end_s[:-1] + agent.rounds.tool_wait_s[:-1], rtol=1e-9)
        assert turns.prompt_tokens[own].tolist() == [prompt for prompt, _ in agent.prompts()]
    lasted_s = sum(column for name, column in turns.phases.items() if name != "tool")
    np.testing.assert_allclose(lasted_s, turns.end_s - turns.submit_s, rtol=1e-4, atol=1e-6)
    assert all((column >= -1e-6).all() for column in turns.phases.values())
    assert (turns.hit_tokens < turns.prompt_tokens).all()
    assert (turns.hit_tokens % BLOCK == 0).all()
    _check_bytes(of_spec, simulated, int(turns.hit_tokens.sum()))
    simulated.scheduler.check()
    assert all(node.free_blocks == node.num_blocks for node in simulated.nodes)
    assert simulated.scheduler.placement.num_waiting == (0, 0)
    assert not any(link.users for node in simulated.nodes for link in node.links())


def _check_bytes(of_spec: SimSpec, simulated: SimulatedCluster, hit_tokens: int) -> None:
    read = sum(node.snic_in.total_bytes for node in simulated.nodes)
    if of_spec.oracle:
        assert read == 0
        return
    hit_bytes = hit_tokens * LAYERS * of_spec.profile.layer_bytes
    ahead = sum(snic.ahead_bytes_read for snic in simulated.snics)
    np.testing.assert_allclose(read - ahead + simulated.dram_bytes, hit_bytes)
    use = simulated.windows.use()
    np.testing.assert_allclose(use.read_bytes.sum(), read)
    written = sum(node.snic_out.total_bytes for node in simulated.nodes)
    np.testing.assert_allclose(use.written_bytes.sum(), written)


@settings(max_examples=8)
@given(specs(), some_agents())
def test_a_simulation_repeats_itself(of_spec: SimSpec, agents: list[SimAgent]) -> None:
    first, second = run(of_spec, agents), run(of_spec, agents)
    np.testing.assert_array_equal(first.turns.end_s, second.turns.end_s)
    np.testing.assert_array_equal(first.snic.read_bytes, second.snic.read_bytes)
    assert first.num_events == second.num_events


@settings(max_examples=10)
@given(specs(), some_agents())
def test_an_oracle_is_never_slower_than_what_moves_bytes(of_spec: SimSpec, agents: list[SimAgent]) -> None:
    alone: dict[str, Any] = {"prefill_ep_nodes": 0, "decode_ep_nodes": 0}
    one = replace(of_spec, cluster=replace(of_spec.cluster, **alone))
    # With one agent nothing is reordered, so it holds turn by turn.
    moved, oracle = run(replace(one, oracle=False), agents[:1]), run(replace(one, oracle=True), agents[:1])
    assert oracle.jct_s <= moved.jct_s + 1e-9

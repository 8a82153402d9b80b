"""Simulations and real runs decide by the same objects: what one has decided, any other decides again."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engines.decision_log import replay
from engines.scheduling.cluster_placement import ClusterPlacement
from engines.sim.simulate import simulate
from engines.sim.simulated_cluster import SimulatedCluster
from engines.types import RequestId, SamplingParams
from tests.engines.local_cluster import running_cluster
from tests.engines.paced import paced_spec
from tests.engines.sim.some_clusters import agents, cluster, rounds, scheduler, spec


@pytest.mark.parametrize("plan", ["basic", "alternate", "dual", "split"])
def test_what_a_simulation_has_decided_is_decided_again(plan: str, tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    settings = scheduler(read_plan=plan, decision_log=str(log), read_memory_s=1.0)
    nodes = cluster(prefill_nodes=2, decode_nodes=2, gpus_per_node=2)
    simulate(spec(nodes, settings), agents(9, rounds(*[(20, 5)] * 4), history_tokens=300))
    lines = log.read_bytes().splitlines()
    assert sum(json.loads(line).get("call") == "plan_reads" for line in lines) == 36
    assert replay(lines) >= 10


def test_a_simulation_places_by_the_object_that_decides_a_paced_run_again(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    paced = paced_spec(tmp_path / "store")
    paced = replace(paced, scheduler=replace(paced.scheduler, read_plan="split", decision_log=str(log)))

    async def play() -> None:
        async with running_cluster(paced) as running:
            client = running.client_parts().client()

            async def converse(name: str) -> None:
                context = client.open_context()
                for turn in range(4):
                    context.append(list(range(40 if turn == 0 else 13)))
                    greedy = SamplingParams(max_tokens=5, temperature=0.0)
                    result = await client.run_turn(context, RequestId(f"{name}-{turn}"), greedy, 30.0)
                    context.append(list(result.token_ids))

            await asyncio.gather(*(converse(name) for name in ("a", "b", "c")))

    asyncio.run(play())
    lines = log.read_bytes().splitlines()
    assert sum(json.loads(line).get("call") == "plan_reads" for line in lines) >= 12
    assert replay(lines) >= 12
    simulated = SimulatedCluster(spec(), agents(1, rounds((20, 5))))
    assert type(simulated.scheduler.placement) is ClusterPlacement

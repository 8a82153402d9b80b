"""Runs agents on a cluster in virtual time, and says what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import numpy as np

from engines.sim.link import Link
from engines.sim.result import LinkLoad, SimResult
from engines.sim.simulated_cluster import SimulatedCluster, Watch
from engines.sim.spec import SimSpec
from engines.sim.workload import SimAgent


def simulate(spec: SimSpec, agents: Sequence[SimAgent], watch: Watch | None = None) -> SimResult:
    """Raises ValueError, in one line, for an agent that cannot work: a context that no buffer holds.

    `watch` looks at the turns while it runs, and may end it before all is done.
    """
    check_sizes(spec, agents)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with ExitStack() as files:
        path = spec.scheduler.decision_log
        cluster = SimulatedCluster(
            spec, agents, None if path is None else files.enter_context(open(path, "wb"))
        )
        cluster.run(watch)
    states = cluster.agents.states
    end_s = np.array([math.nan if state.end_s is None else state.end_s for state in states])
    start_s = np.array([state.start_s for state in states])
    finished = ~np.isnan(end_s)
    links = link_loads(cluster)
    ahead_bytes = sum(snic.ahead_bytes_read for snic in cluster.snics)
    read_bytes = {load.link: load.total_bytes for load in links}
    return SimResult(
        jct_s=float(end_s[finished].max() - start_s.min()) if finished.any() else math.nan,
        end_s=cluster.events.now_s,
        num_agents=len(agents),
        num_finished=int(finished.sum()),
        agent_start_s=start_s,
        agent_end_s=end_s,
        turns=cluster.turns.table(),
        snic=cluster.windows.use(),
        links=links,
        read_bytes={
            "prefill_side": read_bytes["prefill SNIC"] - ahead_bytes,
            "decode_side": read_bytes["decode SNIC"],
            "dram": cluster.dram_bytes,
            "ahead": ahead_bytes,
        },
        written_bytes=read_bytes["prefill SNIC writes"] + read_bytes["decode SNIC writes"],
        forwards=cluster.forwards.table(),
        decode_steps=sum(group.num_steps for group in cluster.decode_groups),
        decode_row_steps=sum(group.num_tokens for group in cluster.decode_groups),
        num_moved_blocks=cluster.scheduler.mover.num_moved_blocks,
        num_events=cluster.events.num_done,
        wall_s=time.perf_counter() - began_s,
        cpu_s=time.process_time() - began_cpu_s,
    )


def check_sizes(spec: SimSpec, agents: Iterable[SimAgent]) -> None:
    """Raise ValueError, naming both sizes, for the first agent whose context a buffer cannot hold."""
    checked: set[tuple[int, int]] = set()
    for agent in agents:
        if (id(agent.rounds), agent.history_tokens) not in checked:
            checked.add((id(agent.rounds), agent.history_tokens))
            _check_agent(spec, agent)
    if not checked:
        raise ValueError("a simulation needs an agent at least")


def _check_agent(spec: SimSpec, agent: SimAgent) -> None:
    cluster = spec.cluster
    prompt = context = 0
    for number, (prompt_tokens, context_tokens) in enumerate(agent.prompts()):
        if not prompt_tokens:
            raise ValueError(f"round {number} of agent {agent.agent_id} has a prompt of 0 tokens")
        prompt, context = max(prompt, prompt_tokens), max(context, context_tokens)
    needs = [
        ("decode_kv_bytes", context, cluster.decode_kv_bytes),
        ("decode_staging_bytes", prompt, cluster.decode_staging_bytes),
        ("prefill_staging_bytes", prompt, cluster.prefill_staging_bytes),
    ]
    if not spec.layerwise:
        needs.append(("prefill_hbm_bytes", prompt, cluster.prefill_hbm_bytes))
    for name, tokens, nbytes in needs:
        blocks = -(-tokens // spec.block_tokens)
        if blocks > nbytes // spec.block_bytes:
            raise ValueError(
                f"agent {agent.agent_id} comes to {tokens} tokens, {blocks} blocks of {spec.block_bytes} "
                f"bytes; {name}={nbytes} holds {nbytes // spec.block_bytes}"
            )


def link_loads(cluster: SimulatedCluster) -> tuple[LinkLoad, ...]:
    """Every link of the cluster, by kind."""
    by_kind: dict[str, list[Link]] = {cluster.store.kind: [cluster.store]}
    for node in cluster.nodes:
        for link in node.links():
            by_kind.setdefault(link.kind, []).append(link)
    return tuple(
        LinkLoad(
            kind,
            len(links),
            links[0].bytes_per_s,
            sum(link.total_bytes for link in links),
            max(link.total_bytes for link in links),
        )
        for kind, links in by_kind.items()
    )

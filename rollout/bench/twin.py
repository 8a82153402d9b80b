"""A paced replay's twin: the simulation of the same agents on the same cluster, at full size.

A paced run makes bytes and modelled times smaller and leaves the periods of its control plane as they are. So
here periods are multiplied by `time_scale`, buffers hold as many blocks as there, and the JCT compares with
the replay's times `time_scale`.
"""

from __future__ import annotations

from dataclasses import replace

from engines.model.paced_spec import PacedSpec
from engines.persist_reserve import num_reserve_slots
from engines.sim.spec import SimCluster, SimSpec
from engines.sim.workload import SimAgent, SimRounds
from rollout.config import RunConfig
from rollout.paced_engines import paced_spec
from rollout.replay import ReplayPlan
from rollout.simulation.agents import columns


def twin_spec(plan: ReplayPlan) -> SimSpec:
    """Of a replay on paced engines."""
    config, paced = plan.config, paced_spec(plan.config)
    assert paced is not None, "a model that runs has no twin"
    settings, scale = config.scheduler, config.time_scale
    return SimSpec(
        cluster=_cluster(config, paced),
        profile=paced.profile,
        scheduler=replace(
            settings,
            fetch_period_s=scale * settings.fetch_period_s,
            read_memory_s=scale * settings.read_memory_s,
            order_aging_s=scale * settings.order_aging_s,
        ),
        block_tokens=config.kvstore.block_tokens,
        prefill_batch_tokens=config.engines.prefill_batch_tokens,
        prefill_load_limit_tokens=config.engines.prefill_load_limit_tokens,
        layerwise=config.engines.prefill_layerwise,
        oracle=config.engines.oracle,
        sharing="closed_form",
        horizon_s=None,
        burst_linger_s=scale * config.engines.burst_linger_s,
    )


def twin_agents(plan: ReplayPlan) -> list[SimAgent]:
    """The replay's agents; those of one session share its columns."""
    known: dict[str, SimRounds] = {}
    for task in plan.tasks:
        if task.task_id not in known:
            known[task.task_id] = columns(task.session, plan.config.tool_wait_scale)
    return [
        SimAgent(
            agent_id=f"{task.task_id}/{number}",
            rounds=known[task.task_id],
            history_tokens=task.session.history_tokens,
            start_s=plan.time_scale * task.start_after_s,
        )
        for number, task in enumerate(plan.tasks)
    ]


def _cluster(config: RunConfig, paced: PacedSpec) -> SimCluster:
    """Buffers for as many blocks as the paced run's hold, each of full size."""
    engines, kvstore = config.engines, config.kvstore
    layout = paced.layout(kvstore.block_tokens)
    block_bytes = kvstore.block_tokens * paced.profile.token_bytes
    slots, kept = kvstore.staging_bytes // layout.slot_bytes, kvstore.dram_bytes // layout.slot_bytes
    reserved = engines.decode_engines_per_node * num_reserve_slots(
        least=engines.persist_slots,
        pack_bytes=kvstore.pack_bytes,
        block_bytes=layout.full_block_bytes,
        num_slots=slots,
        num_engines=engines.decode_engines_per_node,
    )
    return SimCluster(
        prefill_nodes=engines.prefill_nodes,
        decode_nodes=engines.decode_nodes,
        gpus_per_node=engines.prefill_engines_per_node,
        rates=config.cluster,
        storage_bytes_per_s=None,
        copy_bytes_per_s=None,
        prefill_staging_bytes=(slots - kept) * block_bytes,
        decode_staging_bytes=(slots - reserved) * block_bytes,
        dram_bytes=kept * block_bytes,
        prefill_hbm_bytes=engines.prefill_hbm_bytes // layout.full_block_bytes * block_bytes,
        decode_kv_bytes=engines.decode_kv_bytes // layout.full_block_bytes * block_bytes,
        decode_max_requests=engines.decode_max_requests,
        prefill_ep_nodes=engines.prefill_nodes if engines.group_lockstep else 0,
        decode_ep_nodes=0,
    )

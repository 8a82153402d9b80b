"""What a run's configuration makes of a simulation: its cluster at full size, checked; refused in one line.

A preset of `cluster` stands for one engine and its share of a node; here nodes are whole. What does not fit
is said before anything runs: weights and KV in a GPU, a context in the model, in a buffer.
"""

from __future__ import annotations

from dataclasses import replace

from engines.model.profile import ModelProfile
from engines.sim.spec import SimCluster, SimSpec
from rollout.config import RunConfig
from rollout.errors import UserError
from rollout.traces.session import Session

FOR_WEIGHTS_AND_KV = 0.9
"""Share of a GPU's memory; the rest is for activations. Assumed."""


def sim_spec(config: RunConfig) -> SimSpec:
    """UserError for a cluster that cannot be, or that the model does not fit."""
    if config.model_profile is None:
        raise UserError(f"job={config.job} needs model_profile=<one of conf/model_profile>, got null")
    profile, engines = config.model_profile, config.engines
    try:
        cluster = _cluster(config, profile)
    except ValueError as error:
        raise UserError(str(error)) from error
    check_memory(profile, cluster)
    return SimSpec(
        cluster=cluster,
        profile=profile,
        scheduler=config.scheduler,
        block_tokens=config.kvstore.block_tokens,
        prefill_batch_tokens=engines.prefill_batch_tokens,
        prefill_load_limit_tokens=engines.prefill_load_limit_tokens,
        layerwise=engines.prefill_layerwise,
        oracle=engines.oracle,
        sharing=config.simulation.sharing,
        horizon_s=config.simulation.horizon_s,
        burst_linger_s=engines.burst_linger_s,
    )


def check_context(session: Session, profile: ModelProfile) -> None:
    """UserError for a session that is longer than the model's context."""
    tokens = session.longest_context_tokens
    if tokens > profile.max_context_tokens:
        raise UserError(
            f"session {session.session_id} of the trace comes to {tokens} tokens, the context of "
            f"{profile.name} has {profile.max_context_tokens}; cut sessions with task.max_context_tokens="
            f"{profile.max_context_tokens}, or take another model or trace"
        )


def check_memory(profile: ModelProfile, cluster: SimCluster) -> None:
    """UserError unless weights and KV fit a GPU of either role."""
    roles = (
        ("prefill", cluster.prefill_nodes, cluster.prefill_ep_nodes, "prefill_hbm_bytes"),
        ("decode", cluster.decode_nodes, cluster.decode_ep_nodes, "decode_kv_bytes"),
    )
    for role, nodes, group_nodes, field in roles:
        gpus = max(min(group_nodes, nodes) * cluster.gpus_per_node, 1)
        kv_bytes = getattr(cluster, field)
        weights = profile.weights_bytes_on(gpus)
        if weights + kv_bytes > FOR_WEIGHTS_AND_KV * profile.gpu_memory_bytes:
            raise UserError(
                f"{profile.name} does not fit the {role} GPUs: {weights / 1e9:.1f} GB of weights where "
                f"{gpus} share it and engines.{field}={kv_bytes / 1e9:.1f} GB, in "
                f"{FOR_WEIGHTS_AND_KV:.0%} of {profile.gpu_memory_bytes / 1e9:.0f} GB; take more {role} "
                f"nodes, or lower engines.{field}"
            )


def _cluster(config: RunConfig, profile: ModelProfile) -> SimCluster:
    engines, simulation = config.engines, config.simulation
    if config.cluster.snic_bytes_per_s is None or config.cluster.cnic_bytes_per_s is None:
        raise UserError(
            f"job={config.job} needs the rates of NICs: take cluster=1p2d or another preset with rates, or "
            "give cluster.snic_bytes_per_s and cluster.cnic_bytes_per_s"
        )
    if engines.prefill_engines_per_node != engines.decode_engines_per_node:
        raise UserError(
            f"a simulated cluster has nodes of one kind: engines.prefill_engines_per_node="
            f"{engines.prefill_engines_per_node} must be engines.decode_engines_per_node="
            f"{engines.decode_engines_per_node}"
        )
    share = simulation.gpus_per_node / engines.prefill_engines_per_node
    rates = config.cluster
    staging_bytes = int((config.kvstore.staging_bytes - config.kvstore.dram_bytes) * share)
    group_nodes = _group_nodes(profile, simulation.gpus_per_node) if engines.group_lockstep else 0
    return SimCluster(
        prefill_nodes=engines.prefill_nodes,
        decode_nodes=engines.decode_nodes,
        gpus_per_node=simulation.gpus_per_node,
        rates=replace(
            rates,
            snic_bytes_per_s=rates.snic_bytes_per_s and rates.snic_bytes_per_s * share,
            memory_bytes_per_s=rates.memory_bytes_per_s and rates.memory_bytes_per_s * share,
        ),
        storage_bytes_per_s=simulation.storage_bytes_per_s,
        copy_bytes_per_s=simulation.copy_bytes_per_s,
        prefill_staging_bytes=staging_bytes,
        decode_staging_bytes=int(config.kvstore.staging_bytes * share),
        dram_bytes=int(config.kvstore.dram_bytes * share) + simulation.dram_bytes,
        prefill_hbm_bytes=engines.prefill_hbm_bytes,
        decode_kv_bytes=engines.decode_kv_bytes,
        decode_max_requests=engines.decode_max_requests,
        prefill_ep_nodes=min(group_nodes, engines.prefill_nodes),
        decode_ep_nodes=min(group_nodes, engines.decode_nodes),
    )


def _group_nodes(profile: ModelProfile, gpus_per_node: int) -> int:
    """Whole nodes that an expert-parallel group takes; 0: it is one GPU."""
    if profile.expert_parallel_gpus == 1:
        return 0
    return -(-profile.expert_parallel_gpus // gpus_per_node)

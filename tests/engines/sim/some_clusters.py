"""Clusters and agents of round numbers, so that a test can work out what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engines.cluster_config import ClusterConfig
from engines.config import SchedulerConfig
from engines.model.profile import ModelProfile
from engines.sim.result import SimResult
from engines.sim.simulate import simulate
from engines.sim.spec import SimCluster, SimSpec
from engines.sim.workload import KEEP_ALL, SimAgent, SimRounds
from tests.engines.made_profile import THE_REST

BLOCK = 10
LAYERS = 4
LAYER_BYTES = 1000
BLOCK_BYTES = BLOCK * LAYERS * LAYER_BYTES
SNIC, CNIC = 1e6, 1e8

PROFILE = ModelProfile(
    name="made",
    num_layers=LAYERS,
    kv_bytes=LAYER_BYTES,
    indexer_bytes=0,
    attention_s=(0.0, 1e-6, 0.0, 0.0),
    rest_s=(1e-3, 0.0),
    decode_s=(1e-2, 0.0, 0.0),
    decode_collective_s=(0.0, 0.0),
    collective_bytes=(0, 0),
    **THE_REST,
)


def cluster(**changes: Any) -> SimCluster:
    made = SimCluster(
        prefill_nodes=1,
        decode_nodes=1,
        gpus_per_node=1,
        rates=ClusterConfig(SNIC, CNIC, None, "cnic", True),
        storage_bytes_per_s=None,
        copy_bytes_per_s=None,
        prefill_staging_bytes=10_000 * BLOCK_BYTES,
        decode_staging_bytes=10_000 * BLOCK_BYTES,
        dram_bytes=0,
        prefill_hbm_bytes=1000 * BLOCK_BYTES,
        decode_kv_bytes=10_000 * BLOCK_BYTES,
        decode_max_requests=1000,
        prefill_ep_nodes=0,
        decode_ep_nodes=0,
    )
    return replace(made, **changes)


def scheduler(**changes: Any) -> SchedulerConfig:
    made = SchedulerConfig(
        placement="least_loaded",
        group_nodes=0,
        fetch_period_s=0.0,
        fetch_max_requests=64,
        rendezvous="prefill_first",
        prefill_load_counts="prompt",
        read_queue_limit_s=3.0,
        decode_balance_factor=1.05,
        hbm_need="context",
        read_memory_s=0.0,
        read_tie="prefill",
        rebalance=True,
        rebalance_gain=0.25,
        rebalance_min_blocks=2,
        batching="auto",
        read_rate_memory_s=0.1,
        attention_quota_s=0.3,
        attention_quota_scope="forward",
        estimate_coefficients=(1e-4, 1e-5, 1e-9, 1e-8),
        estimate_forgetting=0.98,
        estimate_prior_weight=1.0,
        estimate_outlier_factor=4.0,
        order="fifo",
        order_aging_s=10.0,
        load_only_if_faster=False,
        prefetch=False,
        prefetch_blocks=16,
        prefetch_pull=0.5,
        read_plan="basic",
        place_deadline_s=1.0,
        pending_deadline_s=1.0,
        max_attempts=1,
        heartbeat_s=1.0,
        heartbeat_deadline_s=1.0,
        restart_after_s=1.0,
        decision_log=None,
    )
    return replace(made, **changes)


def spec(
    of_cluster: SimCluster | None = None,
    of_scheduler: SchedulerConfig | None = None,
    profile: ModelProfile = PROFILE,
    **changes: Any,
) -> SimSpec:
    made = SimSpec(
        cluster=of_cluster or cluster(),
        profile=profile,
        scheduler=of_scheduler or scheduler(),
        block_tokens=BLOCK,
        prefill_batch_tokens=10_000,
        prefill_load_limit_tokens=100_000,
        layerwise=True,
        oracle=False,
        sharing="closed_form",
        horizon_s=None,
    )
    return replace(made, **changes)


def rounds(*rows: tuple[int, int], wait_s: float = 0.0, keep: Sequence[int] = ()) -> SimRounds:
    """Of (appended, generated) tokens each."""
    append, output = np.array(rows, np.int32).T
    kept = np.full(len(rows), KEEP_ALL, np.int32)
    kept[: len(keep)] = keep
    return SimRounds(append, output, np.full(len(rows), wait_s, np.float32), kept)


def agents(count: int, each: SimRounds, **of_agent: Any) -> list[SimAgent]:
    return [SimAgent(f"agent-{number}", each, **of_agent) for number in range(count)]


def jct_s(of_spec: SimSpec, of_agents: Sequence[SimAgent]) -> float:
    return run(of_spec, of_agents).jct_s


def run(of_spec: SimSpec, of_agents: Sequence[SimAgent]) -> SimResult:
    result = simulate(of_spec, of_agents)
    result.turns.check()
    return result

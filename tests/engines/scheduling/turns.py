"""What the tests of the scheduling policy place: turns, engines and settings as the paper has them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from engines.config import SchedulerConfig
from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.engine_choice import EnginePair
from engines.scheduling.engine_group import EngineGroup
from engines.scheduling.queued_turn import QueuedTurn
from engines.scheduling.settings import SchedulingSettings
from engines.types import EngineId, EngineInfo, EngineRole, NodeId, RequestId

PAPER = SchedulingSettings(
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
    batching="quota",
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
    prefetch_blocks=2,
    prefetch_pull=0.5,
)


def scheduler_config(**changes: Any) -> SchedulerConfig:
    """The scheduler's configuration: the paper's policy, `basic` reads, deadlines that tests can bear."""
    own: dict[str, Any] = {
        "read_plan": "basic",
        "place_deadline_s": 5.0,
        "pending_deadline_s": 5.0,
        "max_attempts": 1,
        "heartbeat_s": 0.1,
        "heartbeat_deadline_s": 5.0,
        "restart_after_s": 5.0,
        "decision_log": None,
    }
    return SchedulerConfig(**(asdict(PAPER) | own | changes))


LOAD_LIMIT, READ_LIMIT, KV_TOKENS = 100, 50, 1_000_000


def settings(**changes: Any) -> SchedulingSettings:
    return replace(PAPER, **changes)


def turn(name: str, prompt: int = 10, hit: int = 0, **more: Any) -> QueuedTurn:
    fields: dict[str, Any] = {"arrived_s": 0.0, "output_tokens": 0} | more
    return QueuedTurn(RequestId(name), prompt_tokens=prompt, hit_tokens=hit, **fields)


def cluster(prefill: int = 2, decode: int = 2, engines: int = 1, **changes: Any) -> ClusterPlacement:
    """Nodes p0, p1 ... and d0, d1 ..., their engines p0-0, p0-1 ..."""
    placement = ClusterPlacement(
        settings(**changes), load_limit_tokens=LOAD_LIMIT, read_queue_limit_tokens=READ_LIMIT
    )
    for letter, role, nodes in (("p", EngineRole.PREFILL, prefill), ("d", EngineRole.DECODE, decode)):
        for number in range(nodes):
            placement.add_node(NodeId(f"{letter}{number}"))
            for engine in range(engines):
                name = EngineId(f"{letter}{number}-{engine}")
                placement.add_engine(EngineInfo(name, NodeId(f"{letter}{number}"), role, KV_TOKENS))
    return placement


def place(placement: ClusterPlacement, *turns: QueuedTurn) -> list[EnginePair]:
    """Submit and place; the books agree afterwards."""
    for one in turns:
        placement.submit(one)
    pairs = placement.place(0.0)
    placement.check()
    return pairs


def prefill_group(placement: ClusterPlacement, number: int = 0) -> EngineGroup:
    return placement.groups(EngineRole.PREFILL)[number]


def decode_group(placement: ClusterPlacement, number: int = 0) -> EngineGroup:
    return placement.groups(EngineRole.DECODE)[number]

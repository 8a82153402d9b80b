"""A whole cluster inside one process and event loop: every part is the real one, only the process borders
are missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.cluster import ClusterSpec, EngineCluster, Spawn, start_cluster
from engines.cluster_config import ClusterConfig
from engines.config import EnginesConfig
from engines.persist_reserve import num_reserve_slots
from engines.types import NodeId, Weights
from kvstore.config import StoreConfig
from kvstore.job_token import JobToken
from kvstore.keys import WeightsId
from kvstore.open_transport import TransportSpec
from kvstore.transport_config import TransportConfig
from tests.engines.scheduling.turns import scheduler_config

ENGINES = EnginesConfig(
    kind="transformers",
    device="cpu",
    dtype="float32",
    threads=1,
    prefill_nodes=1,
    prefill_engines_per_node=1,
    decode_nodes=1,
    decode_engines_per_node=1,
    group_lockstep=False,
    prefill_batch_tokens=512,
    prefill_layerwise=True,
    prefill_hbm_bytes=1 << 30,
    oracle=False,
    burst_linger_s=0.002,
    prefill_load_limit_tokens=100_000,
    decode_kv_bytes=1 << 20,
    decode_max_requests=64,
    persist_slots=2,
    step_deadline_s=30.0,
    start_deadline_s=60.0,
)
SCHEDULER = scheduler_config(place_deadline_s=30.0, pending_deadline_s=10.0, max_attempts=3)
STORE = StoreConfig(
    kind="ssd",
    path=None,
    block_tokens=8,
    staging_bytes=8 << 20,
    dram_bytes=0,
    io_threads=2,
    read_chunk_bytes=1 << 20,
    read_depth=2,
    read_report_s=0.01,
    deadline_s=10.0,
    capacity_bytes=None,
    reserve_bytes=None,
    segment_bytes=1 << 20,
    pack_bytes=12 << 10,
    durability="none",
    lease_ttl_s=10.0,
    refresh_s=30.0,
    mooncake=None,
)
NO_LIMITS = ClusterConfig(None, None, None, h2d="copy", traffic_classes=True)
SHM = TransportSpec(TransportConfig("shm", "127.0.0.1", None, None, None), JobToken.draw())


def cluster_spec(model_path: str, store_directory: Path, **changes: object) -> ClusterSpec:
    """The spec of a one-process cluster; `changes` go to the engines' configuration."""
    return ClusterSpec(
        engines=replace(ENGINES, **changes),  # type: ignore[arg-type]
        scheduler=SCHEDULER,
        kvstore=STORE,
        transport=SHM,
        model_path=model_path,
        store_directory=str(store_directory),
        run_id="test",
        weights=Weights(0, WeightsId("weights-0")),
        job_seed=7,
        rates=NO_LIMITS,
    )


async def spawn_here(
    cls: type,
    *args: object,
    name: str,
    node: NodeId | None,
    gpu: bool = False,
    restarts: bool = False,
    **kwargs: object,
) -> Any:
    return cls(*args, **kwargs)


def with_store(spec: ClusterSpec, **changes: object) -> ClusterSpec:
    """`spec` with these changes to the store's configuration."""
    return replace(spec, kvstore=replace(spec.kvstore, **changes))  # type: ignore[arg-type]


@asynccontextmanager
async def running_cluster(spec: ClusterSpec, spawn: Spawn = spawn_here) -> AsyncIterator[EngineCluster]:
    """Start `spec`; on the way out the scheduler must have got everything back."""
    cluster = await start_cluster(spawn, spec)
    try:
        yield cluster
        await asyncio.wait_for(cluster.pause(30), 30)
        cluster.scheduler.check()
        figures = await cluster.scheduler.figures()
        num_slots = {node_id: (await node.handle()).num_slots for node_id, node in cluster.nodes.items()}
        total = sum(num_slots.values())
        lent = sum(
            num_reserve_slots(
                least=spec.engines.persist_slots,
                pack_bytes=spec.kvstore.pack_bytes,
                block_bytes=cluster.layout.full_block_bytes,
                num_slots=num_slots[NodeId(engine_id.rpartition("-")[0])],
                num_engines=spec.engines.decode_engines_per_node,
            )
            for engine_id in cluster.decode_engines
        )
        assert figures["free_slots"] + figures["dram_slots"] == total - lent, figures
        assert (figures["placed"], figures["quarantined_slots"]) == (0, 0), figures
    finally:
        await cluster.close()

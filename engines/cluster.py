"""Builds a job's engines and nodes, joins them up, and changes their weights.

It decides who is started where and in which order; how a class becomes a process is the caller's `Spawn`, so
the same code makes a cluster of actors and a cluster inside one process. Order: engines load the model,
which tells the block layout; nodes make their staging memory for it; the scheduler learns of both; engines
connect.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from engines.answered import answered
from engines.client import ClientParts
from engines.cluster_bottleneck import bottleneck
from engines.cluster_config import ClusterConfig
from engines.config import EnginesConfig, SchedulerConfig
from engines.engine_nics import NicsHandle
from engines.last_answers import LastAnswers
from engines.measured import Forward, NodeBytes, TokenCounts
from engines.model.paced_spec import PacedSpec
from engines.model.runner import NamedArray
from engines.node import NodeNics, NodeProcess
from engines.oracle_node import OracleNode
from engines.persist_reserve import num_reserve_slots, reserve_of
from engines.processes import DecodeProcess, EngineSpec, PrefillProcess, resolve_device
from engines.scheduler_process import SchedulerProcess
from engines.timeline import Span
from engines.types import ClusterSpeeds, EngineId, EngineInfo, EngineRole, NodeId, Weights
from kvstore.config import StoreConfig
from kvstore.layout import BlockLayout
from kvstore.open_transport import TransportSpec
from kvstore.staging import StagingHandle
from kvstore.transport import RegionHandle

logger = logging.getLogger(__name__)


class Spawn(Protocol):
    """Starts `cls(*args, **kwargs)` somewhere and returns it or a proxy of it.

    `node` groups what must share a host; None: anywhere. What is not started with `gpu` sees no GPU.
    """

    async def __call__(
        self, cls: type, *args: object, name: str, node: NodeId | None, gpu: bool = False, **kwargs: object
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Everything the engines of one job are made from."""

    engines: EnginesConfig
    scheduler: SchedulerConfig
    kvstore: StoreConfig
    transport: TransportSpec
    model_path: str
    store_directory: str
    run_id: str
    """Tells this run's segments and weights from other runs'."""
    weights: Weights
    job_seed: int
    rates: ClusterConfig
    paced: PacedSpec | None = None
    """What paced engines run, in place of the model at model_path."""
    trace_every: int = 0
    """Every n-th turn is drawn (engines.timeline); 0: none."""


@dataclass(slots=True)
class EngineCluster:
    """A running set of engines. `weights` is what they hold.

    Figures of a part that does not answer any more are those it told last.
    """

    spec: ClusterSpec
    layout: BlockLayout
    scheduler: Any
    nodes: dict[NodeId, Any]
    prefill_engines: dict[EngineId, Any]
    decode_engines: dict[EngineId, Any]
    weights: Weights
    _answers: LastAnswers = field(default_factory=LastAnswers)

    def client_parts(self) -> ClientParts:
        return ClientParts(
            self.scheduler,
            self.prefill_engines,
            self.decode_engines,
            self.spec.scheduler,
            self.layout,
            self.weights,
            abort_deadline_s=self.spec.engines.abort_deadline_s,
        )

    @property
    def engines(self) -> list[Any]:
        return [*self.prefill_engines.values(), *self.decode_engines.values()]

    async def pause(self, deadline_s: float) -> None:
        """Place nothing more; return when running turns and pending persists are through.

        Raises PauseTimeout if that takes longer than `deadline_s`.
        """
        pause = self.scheduler.pause(deadline_s)
        await answered("the scheduler", pause, deadline_s + self._patience_s)

    async def resume(self) -> None:
        await answered("the scheduler", self.scheduler.resume(), self._patience_s)

    async def scheduler_figures(self) -> dict[str, float]:
        """What the scheduler holds right now. Raises EngineFailed if it does not answer."""
        figures = await answered("the scheduler", self.scheduler.figures(), self._patience_s)
        return dict(figures)

    async def update_weights(
        self, weights: Weights, buckets: AsyncIterator[Sequence[NamedArray]], deadline_s: float
    ) -> None:
        """Load new weights everywhere while nothing runs; old KV is never hit again.

        If a bucket fails the cluster stays paused: its engines no longer hold one version.
        """
        await self.pause(deadline_s)
        async for bucket in buckets:
            await self._by_all_engines("load_weights", bucket)
        await self._by_all_engines("set_weights", weights)
        await answered("the scheduler", self.scheduler.set_weights(weights), self._patience_s)
        self.weights = weights
        await self.resume()

    async def _by_all_engines(self, method: str, argument: object) -> None:
        """Raises EngineFailed, which names an engine that does not answer."""
        by_id = self.prefill_engines | self.decode_engines
        await asyncio.gather(
            *(
                answered(engine_id, getattr(engine, method)(argument), self._patience_s)
                for engine_id, engine in by_id.items()
            )
        )

    @property
    def _patience_s(self) -> float:
        """For a part's answer to what it does as soon as it can."""
        return self.spec.engines.start_deadline_s

    async def storage_bytes(self) -> dict[NodeId, NodeBytes]:
        """Bytes every node moved through its storage NIC since the start; none of one that never told."""
        told = await self._answers.ask(self.nodes, "moved")
        return {node_id: told.get(node_id, NodeBytes()) for node_id in self.nodes}

    async def node_figures(self) -> dict[NodeId, dict[str, float]]:
        """What every node's storage side has met since the start, by slash-named figure."""
        return await self._answers.ask(self.nodes, "figures")

    async def prefill_figures(self) -> dict[EngineId, dict[str, float]]:
        """What batches every prefill engine has computed since the start, by figure."""
        return await self._answers.ask(self.prefill_engines, "figures")

    async def failures(self) -> dict[EngineId, str]:
        """What ended engines whose processes still answer."""
        by_id = self.prefill_engines | self.decode_engines
        found = await self._answers.ask(by_id, "failure")
        return {engine_id: told for engine_id, told in found.items() if told is not None}

    async def token_counts(self) -> dict[EngineId, TokenCounts]:
        """Tokens every engine computed since the start, by kind."""
        by_id = self.prefill_engines | self.decode_engines
        return await self._answers.ask(by_id, "counts")

    async def spans(self) -> list[Span]:
        """What was recorded of engines and nodes that still answer."""
        parts = self.nodes | self.prefill_engines | self.decode_engines
        found = await self._answers.ask(parts, "spans")
        return [span for spans in found.values() for span in spans]

    async def forwards(self, role: EngineRole) -> dict[EngineId, tuple[Forward, ...]]:
        """The last steps of every engine of `role`, where engines are paced."""
        engines = self.prefill_engines if role is EngineRole.PREFILL else self.decode_engines
        return await self._answers.ask(engines, "forwards")

    async def close(self) -> None:
        for part in (*self.engines, *self.nodes.values(), self.scheduler):
            await part.close()


async def start_cluster(spawn: Spawn, spec: ClusterSpec) -> EngineCluster:
    """Start everything and join it up; raises what a part raised if one cannot start."""
    if (warning := bottleneck(spec.engines, spec.rates)) is not None:
        logger.warning(warning)
    if spec.engines.oracle:  # what was not read cannot be found again in DRAM
        spec = replace(spec, kvstore=replace(spec.kvstore, dram_bytes=0))
    # The engines' own processes may see other devices than this one.
    config = replace(spec.engines, device=resolve_device(spec.engines.device))
    engine_ids = _engine_ids(config)
    engine_spec = EngineSpec(
        config=config,
        scheduling=spec.scheduler,
        model_path=spec.model_path,
        block_tokens=spec.kvstore.block_tokens,
        transport=spec.transport,
        weights=spec.weights,
        job_seed=spec.job_seed,
        paced=spec.paced,
    )
    rails = _rails(engine_ids)
    classes = {EngineRole.PREFILL: PrefillProcess, EngineRole.DECODE: DecodeProcess}
    started = await asyncio.gather(
        *(
            spawn(
                classes[role],
                engine_id,
                replace(engine_spec, transport=replace(spec.transport, rail=rails[engine_id])),
                name=engine_id,
                node=node_id,
                gpu=config.device == "cuda",
            )
            for engine_id, (node_id, role) in engine_ids.items()
        )
    )
    engines = dict(zip(engine_ids, started, strict=True))
    async with asyncio.timeout(config.start_deadline_s):
        layouts = await asyncio.gather(*(engine.layout() for engine in engines.values()))
    layout: BlockLayout = layouts[0]
    nodes = await _start_nodes(spawn, spec, layout, Counter(node for node, _ in engine_ids.values()))
    scheduler = await spawn(
        SchedulerProcess,
        spec.scheduler,
        kvstore=spec.kvstore,
        directory=spec.store_directory,
        num_writers=0 if config.oracle else len(nodes),
        prefill_load_limit_tokens=config.prefill_load_limit_tokens,
        weights=spec.weights,
        speeds=ClusterSpeeds(
            spec.rates.snic_bytes_per_s,
            None if spec.paced is None else spec.paced.step_times.forward_coefficients(),
            1.0 if spec.paced is None else spec.paced.time_scale,
        ),
        name="scheduler",
        node=None,
    )
    cluster = EngineCluster(
        spec=spec,
        layout=layout,
        scheduler=scheduler,
        nodes=nodes,
        prefill_engines={i: engines[i] for i, (_, role) in engine_ids.items() if role is EngineRole.PREFILL},
        decode_engines={i: engines[i] for i, (_, role) in engine_ids.items() if role is EngineRole.DECODE},
        weights=spec.weights,
    )
    await cluster.scheduler.open_store(cluster.layout)
    await answered("a node or engine", _connect(cluster, engine_ids), config.start_deadline_s)
    by_id = cluster.nodes | cluster.prefill_engines | cluster.decode_engines
    await cluster.scheduler.watch(by_id, cluster.prefill_engines)
    return cluster


def gpu_engines_by_node(config: EnginesConfig) -> dict[NodeId, int]:
    """How many engines of each node want a GPU; empty on CPU."""
    if resolve_device(config.device) == "cpu":
        return {}
    return dict(Counter(node_id for node_id, _ in _engine_ids(config).values()))


def node_ids(config: EnginesConfig) -> list[NodeId]:
    """The nodes of a job, each once."""
    return list(dict.fromkeys(node_id for node_id, _ in _engine_ids(config).values()))


def _engine_ids(config: EnginesConfig) -> dict[EngineId, tuple[NodeId, EngineRole]]:
    counts = {
        EngineRole.PREFILL: (config.prefill_nodes, config.prefill_engines_per_node),
        EngineRole.DECODE: (config.decode_nodes, config.decode_engines_per_node),
    }
    return {
        EngineId(f"{role}-{node}-{engine}"): (NodeId(f"{role}-{node}"), role)
        for role, (num_nodes, per_node) in counts.items()
        for node in range(num_nodes)
        for engine in range(per_node)
    }


def _rails(engine_ids: Mapping[EngineId, tuple[NodeId, EngineRole]]) -> dict[EngineId, int]:
    """Each engine's number in its node, and so that of the compute NIC it uses."""
    nodes: Counter[NodeId] = Counter()
    rails = {}
    for engine_id, (node_id, _) in engine_ids.items():
        rails[engine_id] = nodes[node_id]
        nodes[node_id] += 1
    return rails


async def _start_nodes(
    spawn: Spawn, spec: ClusterSpec, layout: BlockLayout, num_engines: Mapping[NodeId, int]
) -> dict[NodeId, Any]:
    names = sorted(num_engines)
    nodes = await asyncio.gather(
        *(
            spawn(
                OracleNode if spec.engines.oracle else NodeProcess,
                node_id,
                spec.kvstore,
                layout,
                spec.store_directory,
                f"{spec.run_id}-{node_id}",
                spec.transport,
                NodeNics(spec.rates, num_engines[node_id]),
                name=f"node-{node_id}",
                node=node_id,
            )
            for node_id in names
        )
    )
    return dict(zip(names, nodes, strict=True))


async def _connect(cluster: EngineCluster, engine_ids: Mapping[EngineId, tuple[NodeId, EngineRole]]) -> None:
    handles: dict[NodeId, StagingHandle] = {}
    for node_id, node in cluster.nodes.items():
        handles[node_id] = await node.handle()
        await node.connect(cluster.scheduler)
        await cluster.scheduler.register_node(node_id, handles[node_id].num_slots, cluster.layout)
    if cluster.spec.scheduler.prefetch:
        await cluster.scheduler.connect_nodes(cluster.nodes)
    regions = {node_id: await node.region() for node_id, node in cluster.nodes.items()}
    await _share_nics(cluster, engine_ids)
    await _loop_copies(cluster, engine_ids, regions)
    if cluster.spec.trace_every:
        for part in (*cluster.engines, *cluster.nodes.values()):
            await part.trace(cluster.spec.trace_every)
    if cluster.spec.engines.group_lockstep:
        await _share_rounds(list(cluster.prefill_engines.values()))
    for engine_id, engine in cluster.decode_engines.items():
        node_id, role = engine_ids[engine_id]
        info = EngineInfo(engine_id, node_id, role, kv_tokens=await engine.kv_tokens())
        pack_bytes, block_bytes = cluster.spec.kvstore.pack_bytes, cluster.layout.full_block_bytes
        num_slots = num_reserve_slots(
            least=cluster.spec.engines.persist_slots,
            pack_bytes=pack_bytes,
            block_bytes=block_bytes,
            num_slots=handles[node_id].num_slots,
            num_engines=cluster.spec.engines.decode_engines_per_node,
        )
        slots = await cluster.scheduler.register_engine(info, num_slots)
        reserve = reserve_of(slots, pack_bytes=pack_bytes, block_bytes=block_bytes)
        await engine.connect(handles[node_id], cluster.nodes[node_id], cluster.scheduler, reserve)
    for engine_id, engine in cluster.prefill_engines.items():
        node_id, role = engine_ids[engine_id]
        await engine.connect(
            handles[node_id],
            cluster.nodes,
            cluster.scheduler,
            cluster.decode_engines,
            regions,
        )
        await cluster.scheduler.register_engine(EngineInfo(engine_id, node_id, role), 0)
    await cluster.scheduler.connect_engines(cluster.nodes, cluster.prefill_engines, cluster.decode_engines)


async def _share_rounds(engines: Sequence[Any]) -> None:
    """Make `engines` one group, whose forwards end together."""
    first, *others = engines
    handle = await first.lead_rounds()
    await asyncio.gather(*(engine.join_rounds(handle) for engine in others))


async def _share_nics(
    cluster: EngineCluster, engine_ids: Mapping[EngineId, tuple[NodeId, EngineRole]]
) -> None:
    """Let every engine move bytes through the cluster's limited NICs, if it has any."""
    found = {node_id: await node.limiter() for node_id, node in cluster.nodes.items()}
    limiters = {node_id: handle for node_id, handle in found.items() if handle is not None}
    if not limiters:
        return
    copies_pass, rails = cluster.spec.rates.h2d == "cnic", _rails(engine_ids)
    for engine_id, engine in {**cluster.prefill_engines, **cluster.decode_engines}.items():
        node_id, _ = engine_ids[engine_id]
        await engine.share_nics(NicsHandle(node_id, rails[engine_id], limiters, copies_pass))


async def _loop_copies(
    cluster: EngineCluster,
    engine_ids: Mapping[EngineId, tuple[NodeId, EngineRole]],
    regions: Mapping[NodeId, RegionHandle],
) -> None:
    """Have the compute NICs make the host-device copies, where they are to and there are any."""
    if cluster.spec.rates.h2d == "cnic" and cluster.spec.transport.config.kind == "verbs":
        for engine_id, engine in {**cluster.prefill_engines, **cluster.decode_engines}.items():
            node_id, _ = engine_ids[engine_id]
            await engine.loop_copies(regions[node_id])

"""Builds a job's engines and nodes, joins them up, and changes their weights.

It decides who is started where and in which order; how a class becomes a process is the caller's `Spawn`, so
the same code makes a cluster of actors and a cluster inside one process. Order: engines load the model,
which tells the block layout; nodes make their staging memory for it; the scheduler learns of both; engines
connect.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from engines.answered import answered
from engines.client import ClientParts
from engines.cluster_bottleneck import bottleneck
from engines.cluster_config import ClusterConfig
from engines.config import EnginesConfig, SchedulerConfig
from engines.errors import EngineFailed
from engines.joining import EnginePlace, Joining
from engines.last_answers import LastAnswers
from engines.measured import Forward, NodeBytes, TokenCounts
from engines.model.paced_spec import PacedSpec
from engines.model.runner import NamedArray
from engines.node import NodeNics, NodeProcess
from engines.oracle_node import OracleNode
from engines.processes import DecodeProcess, EngineSpec, PrefillProcess, resolve_device
from engines.scheduler_process import SchedulerProcess
from engines.supervisor import SCHEDULER, Restart, Supervisor
from engines.timeline import Span
from engines.types import ClusterSpeeds, EngineId, EngineRole, NodeId, Weights
from kvstore.config import StoreConfig
from kvstore.layout import BlockLayout
from kvstore.open_transport import TransportSpec

logger = logging.getLogger(__name__)


class Spawn(Protocol):
    """Starts `cls(*args, **kwargs)` somewhere and returns it or a proxy of it.

    `node` groups what must share a host; None: anywhere. What is not started with `gpu` sees no GPU. What
    `restarts` is made anew in another process when its own ends; its proxy stays good.
    """

    async def __call__(
        self,
        cls: type,
        *args: object,
        name: str,
        node: NodeId | None,
        gpu: bool = False,
        restarts: bool = False,
        **kwargs: object,
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
    keep_kv: bool = False
    """Whether contexts keep their KV when the weights change; else it is computed again."""


class EngineCluster:
    """A running set of engines.

    Figures of a part that does not answer any more are those it told last.
    """

    def __init__(self, joining: Joining, supervisor: Supervisor) -> None:
        self.spec: ClusterSpec = joining.spec
        self.layout: BlockLayout = joining.layout
        self.scheduler: Any = joining.scheduler
        self.nodes: dict[NodeId, Any] = dict(joining.nodes)
        self.prefill_engines: dict[EngineId, Any] = dict(joining.prefill_engines)
        self.decode_engines: dict[EngineId, Any] = dict(joining.decode_engines)
        self.supervisor = supervisor
        self._joining = joining
        self._answers = LastAnswers()

    @property
    def weights(self) -> Weights:
        """What the engines hold."""
        return self._joining.weights

    def client_parts(self) -> ClientParts:
        return ClientParts(
            self.scheduler,
            self.prefill_engines,
            self.decode_engines,
            self.spec.scheduler,
            self.layout,
            self.weights,
            abort_deadline_s=self.spec.engines.abort_deadline_s,
            keep_kv=self.spec.keep_kv,
        )

    @property
    def engines(self) -> list[Any]:
        return [*self.prefill_engines.values(), *self.decode_engines.values()]

    async def pause(self, deadline_s: float) -> None:
        """Place nothing more; return when running turns and pending persists are through.

        Raises PauseTimeout if that takes longer than `deadline_s`. A scheduler that is gone is waited for;
        the next one is paused from its start.
        """
        self.supervisor.paused = True
        end_s = time.monotonic() + deadline_s
        while True:
            left_s = max(0.0, end_s - time.monotonic())
            try:
                pause = self.scheduler.pause(left_s)
                return await answered("the scheduler", pause, left_s + self._patience_s)
            except EngineFailed:
                await self.supervisor.serves(SCHEDULER, left_s)

    async def resume(self) -> None:
        """Place turns again; a scheduler that is gone does so when it is back."""
        self.supervisor.paused = False
        with suppress(EngineFailed):
            await answered("the scheduler", self.scheduler.resume(), self._patience_s)

    async def scheduler_figures(self) -> dict[str, float]:
        """What the scheduler held when it answered last."""
        told = await self._answers.ask({SCHEDULER: self.scheduler}, "figures")
        return dict(told.get(SCHEDULER, {}))

    async def update_weights(
        self, weights: Weights, buckets: AsyncIterator[Sequence[NamedArray]], deadline_s: float
    ) -> None:
        """Load new weights everywhere while no turn runs; old KV is never hit again, but by contexts that
        keep it (`keep_kv`).

        An engine that fails meanwhile gets them when it is back. If all do, EngineFailed is raised, and
        another update is due. What else is raised leaves the cluster paused: its engines do not hold one
        version.
        """
        await self.pause(deadline_s)
        await self.supervisor.some_can_load(self._patience_s)
        async with self.supervisor.changing:
            holders = self.supervisor.that_can_load()
            async for bucket in buckets:
                await self._by_all(holders, "load_weights", bucket)
            await self._by_all(holders, "set_weights", weights)
            self._joining.weights = weights
            self.supervisor.have_taken(holders)
            scheduler = {SCHEDULER: self.scheduler}
            await self._by_all(scheduler, "set_weights", weights, keep_kv=self.spec.keep_kv)
        await self.resume()

    async def _by_all(self, parts: dict[str, Any], method: str, argument: object, **options: object) -> None:
        """Whoever does not do it is lost, and out of `parts`. Raises EngineFailed if no engine is left."""
        calls = (
            answered(name, getattr(part, method)(argument, **options), self._patience_s)
            for name, part in parts.items()
        )
        told = await asyncio.gather(*calls, return_exceptions=True)
        for name, answer in zip(list(parts), told, strict=True):
            if isinstance(answer, EngineFailed):
                await self.supervisor.watch.lose(name, f"it did not take the new weights: {answer}")
                del parts[name]
                if not parts and name != SCHEDULER:
                    await self.resume()
                    raise answer
            elif isinstance(answer, BaseException):
                raise answer

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
        """What ended the loops of engines, those that were restarted since included."""
        by_id = self.prefill_engines | self.decode_engines
        found = await self._answers.ask(by_id, "failure")
        broken = {EngineId(name): told for name, told in self.supervisor.watch.broken.items()}
        return broken | {engine_id: told for engine_id, told in found.items() if told is not None}

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
        self.supervisor.close()
        for part in (*self.engines, *self.nodes.values(), self.scheduler):
            with suppress(EngineFailed):  # it is dead, and the others are to be closed all the same
                await part.close()


async def start_cluster(spawn: Spawn, spec: ClusterSpec, restart: Restart | None = None) -> EngineCluster:
    """Start everything and join it up; raises what a part raised if one cannot start.

    With `restart` parts that are gone later are started anew.
    """
    if (warning := bottleneck(spec.engines, spec.rates)) is not None:
        logger.warning(warning)
    if spec.engines.oracle:  # what was not read cannot be found again in DRAM
        spec = replace(spec, kvstore=replace(spec.kvstore, dram_bytes=0))
    # The engines' own processes may see other devices than this one.
    config = replace(spec.engines, device=resolve_device(spec.engines.device))
    places = _engine_places(config)
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
    classes = {EngineRole.PREFILL: PrefillProcess, EngineRole.DECODE: DecodeProcess}
    started = await asyncio.gather(
        *(
            spawn(
                classes[place.role],
                engine_id,
                replace(engine_spec, transport=replace(spec.transport, rail=place.rail)),
                name=engine_id,
                node=place.node_id,
                gpu=config.device == "cuda",
                restarts=True,
            )
            for engine_id, place in places.items()
        )
    )
    engines = dict(zip(places, started, strict=True))
    async with asyncio.timeout(config.start_deadline_s):
        layouts = await asyncio.gather(*(engine.layout() for engine in engines.values()))
    layout: BlockLayout = layouts[0]
    nodes = await _start_nodes(spawn, spec, layout, Counter(place.node_id for place in places.values()))
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
        restarts=True,
    )
    joining = Joining(
        spec=spec,
        layout=layout,
        scheduler=scheduler,
        nodes=nodes,
        prefill_engines={i: engines[i] for i, place in places.items() if place.role is EngineRole.PREFILL},
        decode_engines={i: engines[i] for i, place in places.items() if place.role is EngineRole.DECODE},
        places=places,
        weights=spec.weights,
    )
    await scheduler.open_store(layout, spec.weights)
    await answered("a node or engine", joining.join_all(), config.start_deadline_s)
    await scheduler.begin(paused=False)
    supervisor = Supervisor(joining, restart)
    supervisor.start()
    return EngineCluster(joining, supervisor)


def gpu_engines_by_node(config: EnginesConfig) -> dict[NodeId, int]:
    """How many engines of each node want a GPU; empty on CPU."""
    if resolve_device(config.device) == "cpu":
        return {}
    return dict(Counter(place.node_id for place in _engine_places(config).values()))


def node_ids(config: EnginesConfig) -> list[NodeId]:
    """The nodes of a job, each once."""
    return list(dict.fromkeys(place.node_id for place in _engine_places(config).values()))


def _engine_places(config: EnginesConfig) -> dict[EngineId, EnginePlace]:
    counts = {
        EngineRole.PREFILL: (config.prefill_nodes, config.prefill_engines_per_node),
        EngineRole.DECODE: (config.decode_nodes, config.decode_engines_per_node),
    }
    return {
        EngineId(f"{role}-{node}-{engine}"): EnginePlace(NodeId(f"{role}-{node}"), role, engine)
        for role, (num_nodes, per_node) in counts.items()
        for node in range(num_nodes)
        for engine in range(per_node)
    }


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
                restarts=True,
            )
            for node_id in names
        )
    )
    return dict(zip(names, nodes, strict=True))

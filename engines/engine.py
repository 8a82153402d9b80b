"""What prefill and decode engines have in common: a model, data paths, a loop, and one version of weights.

An engine here knows when to refuse work and how to take new weights; what it computes is its subclass's.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from engines.config import EnginesConfig
from engines.engine_loop import EngineLoop
from engines.engine_nics import EngineNics, NicsHandle
from engines.errors import EngineBroken, EngineFailed, NotJoined
from engines.measured import Forward, TokenCounts
from engines.model.forward_rounds import ForwardRounds, SharedRounds
from engines.model.runner import GroupLinks, ModelRunner, NamedArray
from engines.null_traffic import NullTraffic
from engines.scheduling.settings import SchedulingSettings
from engines.stopping import Decoder
from engines.timeline import Span, Timeline
from engines.traffic_manager import TrafficManager, open_traffic_manager
from engines.types import EngineId, NodeId, Placement, Weights
from kvstore.layout import BlockLayout
from kvstore.limiter import LimiterHandle
from kvstore.staging import StagingHandle
from kvstore.transport import RegionHandle, Transport


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of."""

    config: EnginesConfig
    scheduling: SchedulingSettings
    runner: ModelRunner
    decoder: Decoder
    transport: Transport
    weights: Weights
    job_seed: int


class Engine(ABC):
    """One GPU's (or CPU's) engine. Public methods run on one event loop, `_step` on the engine's own."""

    def __init__(self, engine_id: EngineId, parts: EngineParts) -> None:
        self._engine_id = engine_id
        self._config = parts.config
        self._runner = parts.runner
        self._layout: BlockLayout = parts.runner.layout
        self._decoder = parts.decoder
        self._transport = parts.transport
        self._weights = parts.weights
        self._job_seed = parts.job_seed
        self._nics: EngineNics | None = None
        self._own_region: RegionHandle | None = None
        self._rounds: ForwardRounds | None = None
        self._regions: dict[NodeId, RegionHandle] = {}
        """By which other nodes' memory is reached."""
        self._traffic: TrafficManager
        self._joined = False
        self._events: asyncio.AbstractEventLoop
        self._open = ExitStack()
        self._open.callback(parts.transport.close)
        self._failure: str | None = None
        self._timeline = Timeline(engine_id)
        self._loop = EngineLoop(engine_id, self._step, self._fail_all)

    async def share_nics(self, handle: NicsHandle) -> None:
        """Move bytes no faster than the cluster's limited NICs; before the engine is connected."""
        self._nics = EngineNics(handle)
        self._open.callback(self._nics.close)

    async def loop_copies(self, own_region: RegionHandle) -> None:
        """Make host-device copies through the compute NIC and the node's memory as peers reach it; before the
        engine is connected."""
        self._own_region = own_region

    async def lead_rounds(self) -> RegionHandle:
        """Begin a group whose forwards end together; the others get what this returns."""
        return self._share(SharedRounds.create(self._engine_id))

    async def join_rounds(self, handle: RegionHandle) -> None:
        """Compute in the rounds of another engine's group; before the engine is connected."""
        self._share(SharedRounds.attach(handle))

    def _share(self, shared: SharedRounds) -> RegionHandle:
        self._open.callback(shared.close)
        self._rounds = shared.rounds()
        return shared.handle

    def _send_collective(self, nbytes: int) -> None:
        self._traffic.model_traffic(nbytes, self._config.step_deadline_s)

    def _map(self, staging: StagingHandle) -> None:
        """Map the own node's memory and bind to the running event loop; before `self._loop.start()`."""
        manager = NullTraffic if self._config.oracle else TrafficManager
        self._traffic = open_traffic_manager(
            staging, self._transport, self._runner, self._nics, self._own_region, manager
        )
        self._open.callback(self._traffic.close)
        self._runner.link(GroupLinks(self._send_collective, self._rounds))
        self._events = asyncio.get_running_loop()
        self._joined = True

    def _require_joined(self) -> None:
        if not self._joined:
            raise NotJoined(f"{self._engine_id} has not joined the cluster yet")

    async def learn_node(self, node_id: NodeId, region: RegionHandle, limiter: LimiterHandle | None) -> None:
        """Another node has begun anew: bytes for it go to its new memory, through its new NICs."""
        self._regions[node_id] = region
        if self._nics is not None and limiter is not None:
            self._nics.learn(node_id, limiter)

    async def alive(self) -> int:
        """The process's id, as a sign of life. Raises EngineFailed if the engine is of no use."""
        self._require_joined()
        if self._failure is not None:
            raise EngineBroken(self._failure)
        return os.getpid()

    async def layout(self) -> BlockLayout:
        return self._layout

    async def held(self) -> Weights:
        """The weights it serves under."""
        return self._weights

    async def weight_sizes(self) -> dict[str, int]:
        """Bytes of every weight as it travels, by name."""
        return self._runner.weight_sizes()

    async def read_weights(self, names: Sequence[str]) -> list[NamedArray]:
        """These weights, for another engine to load."""
        return await self._loop.call(lambda: self._runner.read_weights(names), self._config.start_deadline_s)

    async def load_weights(self, bucket: Sequence[NamedArray]) -> None:
        """Copy a bucket of new weights into the model."""
        self._require_joined()
        await self._loop.call(lambda: self._runner.load_weights(bucket), self._config.start_deadline_s)

    async def set_weights(self, weights: Weights) -> None:
        """All buckets of `weights` are loaded: serve under them."""
        await self._loop.call(self._runner.weights_loaded, self._config.start_deadline_s)
        self._weights = weights

    async def counts(self) -> TokenCounts:
        return self._runner.counts

    async def failure(self) -> str | None:
        """What ended the engine's loop; None while it runs."""
        return self._loop.failure

    async def forwards(self) -> tuple[Forward, ...]:
        """The last steps of a runner that models its times."""
        return self._runner.forwards

    async def moved_bytes(self) -> dict[str, int]:
        """Bytes moved since the start, by hop."""
        return self._traffic.by_hop()

    async def trace(self, every: int) -> None:
        """Record what is done for every `every`-th turn."""
        self._timeline.sample(every)

    async def spans(self) -> tuple[Span, ...]:
        """What was recorded, for a picture."""
        return self._timeline.spans()

    async def close(self) -> None:
        self._loop.stop(self._config.step_deadline_s)
        self._open.close()

    def _refuse_stale(self, placement: Placement) -> None:
        self._require_joined()
        if placement.weights_id != self._weights.weights_id:
            raise EngineFailed(
                f"{placement.request_id} was placed for weights version {placement.weights_version}, "
                f"{self._engine_id} holds {self._weights.version}"
            )

    @abstractmethod
    def _step(self) -> bool:
        """One step on the engine's loop; whether it did anything."""

    @abstractmethod
    def _fail_all(self, failure: str) -> None:
        """The loop has ended by `failure`: tell everybody who waits."""

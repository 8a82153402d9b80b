"""How nodes and engines are joined up: all of them at the start, and one of them each time it comes back.

Order: a node tells what others need of it and the scheduler learns of its slots; an engine maps its node's
memory and learns of its peers; only then may the scheduler give it turns. Here is what that takes; when it is
due is engines.cluster's and engines.supervisor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.engine_nics import NicsHandle
from engines.persist_reserve import PersistReserve, num_reserve_slots, reserve_of
from engines.types import EngineId, EngineInfo, EngineRole, NodeId, Weights
from kvstore.layout import BlockLayout
from kvstore.limiter import LimiterHandle
from kvstore.staging import StagingHandle
from kvstore.transport import RegionHandle

if TYPE_CHECKING:
    from engines.cluster import ClusterSpec


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """Where an engine is, and what it is there."""

    node_id: NodeId
    role: EngineRole
    rail: int
    """Its number in its node."""


@dataclass(slots=True)
class Joining:
    """One per cluster: its parts, and what they need of one another."""

    spec: ClusterSpec
    layout: BlockLayout
    scheduler: Any
    nodes: Mapping[NodeId, Any]
    prefill_engines: Mapping[EngineId, Any]
    decode_engines: Mapping[EngineId, Any]
    places: Mapping[EngineId, EnginePlace]
    weights: Weights
    """What engines must hold to serve."""
    _handles: dict[NodeId, StagingHandle] = field(default_factory=dict)
    _regions: dict[NodeId, RegionHandle] = field(default_factory=dict)
    _limiters: dict[NodeId, LimiterHandle] = field(default_factory=dict)
    _kv_tokens: dict[EngineId, int] = field(default_factory=dict)
    """Of decode engines; also of one that is dead, as its size does not change."""

    @property
    def engines(self) -> dict[EngineId, Any]:
        return {**self.decode_engines, **self.prefill_engines}

    def engines_of(self, node_id: NodeId) -> list[EngineId]:
        return [engine_id for engine_id, place in self.places.items() if place.node_id == node_id]

    async def join_all(self) -> None:
        """Nothing has been joined up before."""
        for node_id in self.nodes:
            await self.learn_node(node_id)
            await self.enlist_node(node_id)
        for engine_id in self.engines:
            await self._prepare(engine_id)
        if self.spec.engines.group_lockstep:
            await _share_rounds(list(self.prefill_engines.values()))
        for engine_id in self.engines:
            await self._connect(engine_id)
            await self.enlist_engine(engine_id)
        await self.introduce()

    # -- nodes ---------------------------------------------------------------------------------------

    async def learn_node(self, node_id: NodeId) -> None:
        """Ask the node for what others need to reach it, and tell it whom it reports to."""
        node = self.nodes[node_id]
        self._handles[node_id] = await node.handle()
        self._regions[node_id] = await node.region()
        limiter = await node.limiter()
        if limiter is not None:
            self._limiters[node_id] = limiter
        await node.connect(self.scheduler)
        if self.spec.trace_every:
            await node.trace(self.spec.trace_every)

    async def enlist_node(self, node_id: NodeId) -> None:
        """The scheduler lends the node's slots from now on, none of which it has lent before."""
        await self.scheduler.register_node(node_id, self._handles[node_id].num_slots, self.layout)

    async def tell_of_node(self, node_id: NodeId, engine_ids: Iterable[EngineId]) -> None:
        """The node has new memory and new NICs: these engines of other nodes move bytes there."""
        region, limiter = self._regions[node_id], self._limiters.get(node_id)
        await asyncio.gather(*(self.engines[e].learn_node(node_id, region, limiter) for e in engine_ids))

    # -- engines -------------------------------------------------------------------------------------

    async def join_engine(self, engine_id: EngineId) -> None:
        """Connect an engine whose process has just begun. A group that computes in rounds goes on without
        it: its rounds are its own."""
        await self._prepare(engine_id)
        await self._connect(engine_id)

    async def enlist_engine(self, engine_id: EngineId) -> None:
        """The scheduler gives the engine turns from now on."""
        place = self.places[engine_id]
        if place.role is EngineRole.DECODE and engine_id not in self._kv_tokens:
            self._kv_tokens[engine_id] = await self.engines[engine_id].kv_tokens()
        kv_tokens = self._kv_tokens.get(engine_id, 0)
        await self.scheduler.register_engine(EngineInfo(engine_id, place.node_id, place.role, kv_tokens))

    async def reserve(self, engine_id: EngineId) -> PersistReserve:
        """The slots that are a decode engine's own."""
        kvstore, node_id = self.spec.kvstore, self.places[engine_id].node_id
        pack_bytes, block_bytes = kvstore.pack_bytes, self.layout.full_block_bytes
        num_slots = num_reserve_slots(
            least=self.spec.engines.persist_slots,
            pack_bytes=pack_bytes,
            block_bytes=block_bytes,
            num_slots=self._handles[node_id].num_slots,
            num_engines=self.spec.engines.decode_engines_per_node,
        )
        slots = await self.scheduler.reserve_slots(engine_id, node_id, num_slots)
        return reserve_of(slots, pack_bytes=pack_bytes, block_bytes=block_bytes)

    async def introduce(self) -> None:
        """The scheduler may ask nodes and engines from now on."""
        if self.spec.scheduler.prefetch:
            await self.scheduler.connect_nodes(self.nodes)
        await self.scheduler.connect_engines(self.nodes, self.prefill_engines, self.decode_engines)

    # -- inside --------------------------------------------------------------------------------------

    async def _prepare(self, engine_id: EngineId) -> None:
        """What an engine must know before it is connected: limited NICs, and how copies are made."""
        engine, place = self.engines[engine_id], self.places[engine_id]
        if self._limiters:
            copies_pass = self.spec.rates.h2d == "cnic"
            await engine.share_nics(NicsHandle(place.node_id, place.rail, dict(self._limiters), copies_pass))
        if self.spec.rates.h2d == "cnic" and self.spec.transport.config.kind == "verbs":
            await engine.loop_copies(self._regions[place.node_id])
        if self.spec.trace_every:
            await engine.trace(self.spec.trace_every)

    async def _connect(self, engine_id: EngineId) -> None:
        engine, place = self.engines[engine_id], self.places[engine_id]
        handle = self._handles[place.node_id]
        if place.role is EngineRole.DECODE:
            reserve = await self.reserve(engine_id)
            await engine.connect(handle, self.nodes[place.node_id], self.scheduler, reserve)
        else:
            await engine.connect(handle, self.nodes, self.scheduler, self.decode_engines, dict(self._regions))


async def _share_rounds(engines: Sequence[Any]) -> None:
    """Make `engines` one group, whose forwards end together."""
    first, *others = engines
    handle = await first.lead_rounds()
    await asyncio.gather(*(engine.join_rounds(handle) for engine in others))

"""Gets slots back of turns that broke while somebody who might touch them gave no answer.

It asks again and again: both engines to abort the turn, the slots' node whether it still reads for it. Slots
are free when everybody concerned has said so, or is dead and what he had sent has had time to arrive. Slots
of a node that is dead are gone with its memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from engines.errors import EngineDead, EngineFailed
from engines.peers import DecodePeer, NodePeer, PrefillPeer
from engines.types import EngineId, NodeId, Placement, RequestId, SlotId


class SlotReclaimer:
    """One per scheduler, on its event loop. It asks nobody before `connect`."""

    def __init__(self, period_s: float, resolve: Callable[[RequestId, NodeId], None]) -> None:
        """`period_s` between two tries, and for an answer. `resolve` hears whose slots are free, and on
        which node."""
        self._period_s = period_s
        self._resolve = resolve
        self._nodes: Mapping[NodeId, NodePeer] = {}
        self._prefill_engines: Mapping[EngineId, PrefillPeer] = {}
        self._decode_engines: Mapping[EngineId, DecodePeer] = {}
        self._tries: set[asyncio.Task[None]] = set()

    def connect(
        self,
        nodes: Mapping[NodeId, NodePeer],
        prefill_engines: Mapping[EngineId, PrefillPeer],
        decode_engines: Mapping[EngineId, DecodePeer],
    ) -> None:
        """Whom to ask."""
        self._nodes = nodes
        self._prefill_engines = prefill_engines
        self._decode_engines = decode_engines

    @property
    def num_open(self) -> int:
        """Turns, by node, whose slots nobody may have yet."""
        return len(self._tries)

    def begin(self, placement: Placement, slots: Mapping[NodeId, Sequence[SlotId]]) -> None:
        """Somebody may still touch these slots of a turn that is over."""
        for node_id in slots.keys() & self._nodes.keys():
            task = asyncio.ensure_future(self._reclaim(placement, node_id, slots[node_id]))
            self._tries.add(task)
            task.add_done_callback(self._tries.discard)

    def close(self) -> None:
        for task in self._tries:
            task.cancel()

    async def _reclaim(self, placement: Placement, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                if await self._is_let_go(placement, node_id, slots):
                    self._resolve(placement.request_id, node_id)
                    return
            except EngineDead:
                return
            except (EngineFailed, TimeoutError):
                continue

    async def _is_let_go(self, placement: Placement, node_id: NodeId, slots: Sequence[SlotId]) -> bool:
        """Prefill first: once it has answered, nothing more is handed over or read."""
        request_id = placement.request_id
        await self._abort(self._prefill_engines[placement.prefill_engine].abort(request_id))
        if node_id == placement.decode_node:  # a decode engine touches no other node's slots
            await self._abort(self._decode_engines[placement.decode_engine].abort(request_id))
        async with asyncio.timeout(self._period_s):
            return await self._nodes[node_id].let_go(request_id, slots)

    async def _abort(self, abort: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self._period_s):
                await abort
        except EngineDead:
            await asyncio.sleep(self._period_s)

"""Reads contexts into prefill nodes' memory while their agents wait for tools (`scheduler.prefetch`).

Where a context goes is decided in engines.scheduling.prefetch; here blocks of it are read a few at a time, on
nodes that have nothing to read for turns, into slots that no prompt waits for. What has been read is kept in
the node's DRAM tier, where any prompt that needs the room still gets it; until its agent goes on, no other
block that is merely kept takes its place. So a read ahead costs a turn one small read's time at most.

    begin -> (read a few)* -> end
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from engines.config import SchedulerConfig
from engines.errors import EngineFailed
from engines.loans import Loans
from engines.peers import NodePeer
from engines.read_messages import BlockLoad
from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.prefetch import NodeMemory, choose_node
from engines.slot_queue import SlotQueue
from engines.types import EngineRole, NodeId, RequestId, SlotId
from kvstore.indexed_blocks import IndexedBlocks
from kvstore.keys import BlockKey
from kvstore.prefix_index import PrefixIndex
from kvstore.store import BlockReadResult, ReadStatus

_ANSWER_SLACK_S = 5.0
"""For the messages to and fro, after a node's own deadline."""


@dataclass(slots=True)
class _Context:
    """A context whose agent waits for a tool."""

    request_id: RequestId
    node_id: NodeId
    keys: tuple[BlockKey, ...]
    """Its first blocks, as many as are held."""
    hit: IndexedBlocks
    """Those of them that were stored when it was looked up last."""
    next_block: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """Blocks of one context that are being read."""

    context: _Context
    loads: tuple[BlockLoad, ...]
    epoch: int

    @property
    def slots(self) -> set[SlotId]:
        return {load.slot for load in self.loads}


class Prefetcher:
    """One per scheduler, on its event loop."""

    def __init__(
        self,
        config: SchedulerConfig,
        loans: Loans,
        index: PrefixIndex,
        slot_queue: SlotQueue,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` hears that slots came back."""
        self._config = config
        self._loans = loans
        self._index = index
        self._slot_queue = slot_queue
        self._on_change = on_change
        self._nodes: Mapping[NodeId, NodePeer] = {}
        self._contexts: dict[RequestId, _Context] = {}
        """In the order in which their agents began to wait."""
        self._reading: dict[NodeId, asyncio.Task[None]] = {}
        self._busy: set[NodeId] = set()
        """Nodes that had something else to read and have not reported since."""
        self._epoch = 0
        self._num_blocks = 0
        """Read ahead so far."""

    def connect(self, nodes: Mapping[NodeId, NodePeer]) -> None:
        """The nodes that can be told to read. Without them nothing is read ahead."""
        self._nodes = nodes

    @property
    def is_idle(self) -> bool:
        """Whether no node has slots to read ahead into."""
        return not self._reading

    def begin(self, request_id: RequestId, keys: Sequence[BlockKey], placement: ClusterPlacement) -> None:
        """The agent of this turn waits for a tool; the context so far has these blocks."""
        if not self._config.prefetch or not self._nodes or request_id in self._contexts:
            return
        groups = placement.groups(EngineRole.PREFILL)
        node_ids = dict.fromkeys(node_id for group in groups for node_id in group.node_ids)
        memories = (self._memory(node_id, keys, placement) for node_id in node_ids)
        chosen = choose_node(memories, len(keys))
        if chosen is None:
            return
        held = tuple(keys[: chosen.num_room])
        hit = self._index.match(held).hit
        self._contexts[request_id] = _Context(request_id, chosen.node_id, held, hit)
        self._loans.node(chosen.node_id).dram.hold(held)

    def end(self, request_id: RequestId) -> None:
        """The agent goes on, or has ended. What is being read for it still is, and is kept."""
        context = self._contexts.pop(request_id, None)
        if context is not None:
            self._loans.node(context.node_id).dram.let_go(context.keys)

    def clear(self) -> None:
        """Nobody wants anything of what is read or held now."""
        self._epoch += 1
        for request_id in list(self._contexts):
            self.end(request_id)

    def lose(self, absent: Set[str]) -> None:
        """These nodes do not answer: wait for them no longer. They may still write into their slots."""
        for node_id in self._reading.keys() & absent:
            self._reading[node_id].cancel()

    def forget(self, node_id: NodeId) -> None:
        """The node has new memory: nothing is read into it, held there or kept."""
        if node_id in self._reading:
            self._reading.pop(node_id).cancel()
        for request_id in [r for r, context in self._contexts.items() if context.node_id == node_id]:
            del self._contexts[request_id]

    def reported(self, node_id: NodeId) -> None:
        """The node has told what it has to read."""
        self._busy.discard(node_id)

    def go_on(self, placement: ClusterPlacement) -> None:
        """Have nodes that could do so read ahead."""
        for node_id in dict.fromkeys(context.node_id for context in self._contexts.values()):
            if node_id not in self._reading and not self._has_better_to_do(node_id, placement):
                batch = self._next_batch(node_id)
                if batch is not None:
                    self._reading[node_id] = asyncio.ensure_future(self._read(node_id, batch))

    def best_memory(self, keys: Sequence[BlockKey]) -> tuple[NodeId | None, int]:
        """The node that keeps most of these blocks, and how many; None where nothing is read ahead."""
        if not self._config.prefetch or not self._nodes:
            return None, 0
        kept = {node_id: len(self._loans.in_dram(node_id, keys)) for node_id in sorted(self._nodes)}
        node_id = max(kept, key=lambda node_id: kept[node_id])
        return (node_id, kept[node_id]) if kept[node_id] else (None, 0)

    def figures(self) -> dict[str, float]:
        """Contexts that are read ahead or held now, and blocks that were read ahead so far."""
        return {"waiting_contexts": len(self._contexts), "prefetched_blocks": self._num_blocks}

    def close(self) -> None:
        for task in self._reading.values():
            task.cancel()

    # -- inside --------------------------------------------------------------------------------------

    def _memory(self, node_id: NodeId, keys: Iterable[BlockKey], placement: ClusterPlacement) -> NodeMemory:
        return NodeMemory(
            node_id,
            num_kept=len(self._loans.in_dram(node_id, keys)),
            num_room=self._loans.node(node_id).num_holdable,
            queue_tokens=placement.queues.tokens(node_id),
        )

    def _has_better_to_do(self, node_id: NodeId, placement: ClusterPlacement) -> bool:
        return (
            node_id in self._busy
            or placement.queues.tokens(node_id) > 0
            or self._slot_queue.waits_for(node_id)
        )

    def _next_batch(self, node_id: NodeId) -> _Batch | None:
        """The next blocks of the first context that lacks some, with slots for them."""
        for context in self._contexts.values():
            blocks = self._lacking(context) if context.node_id == node_id else []
            if not blocks:
                continue
            slots = self._loans.node(node_id).take_ahead(len(blocks))
            if not slots:
                return None
            loads = []
            for block, slot in zip(blocks, slots, strict=False):
                stored = context.hit[block]
                loads.append(BlockLoad(block, slot, stored.key, stored.location))
            context.next_block = loads[-1].block + 1
            return _Batch(context, tuple(loads), self._epoch)
        return None

    def _lacking(self, context: _Context) -> list[int]:
        """Stored blocks of the context that its node does not keep, as many as are read at once."""
        num_stored = len(context.hit)
        if num_stored < len(context.keys) and self._index.is_stored(context.keys[num_stored]):
            context.hit = self._index.match(context.keys).hit
        dram = self._loans.node(context.node_id).dram
        found: list[int] = []
        block = context.next_block
        while block < len(context.hit) and len(found) < self._config.prefetch_blocks:
            if dram.find(context.hit.keys[block]) is None:
                found.append(block)
            block += 1
        context.next_block = found[0] if found else block
        return found

    async def _read(self, node_id: NodeId, batch: _Batch) -> None:
        results: Sequence[BlockReadResult | None] | None = None
        deadline_s = self._config.place_deadline_s
        try:
            async with asyncio.timeout(deadline_s + _ANSWER_SLACK_S):
                results = await self._nodes[node_id].read_ahead(batch.loads, deadline_s)
        except (EngineFailed, TimeoutError, asyncio.CancelledError):  # only lose() and close() cancel it
            self._busy.add(node_id)
        if self._reading.get(node_id) is not asyncio.current_task():  # what it read into is gone
            return
        del self._reading[node_id]
        if results is None:  # it may still write there
            self._loans.node(node_id).quarantine_ahead(batch.slots)
        else:
            self._settle(node_id, batch, results)
        self._on_change()

    def _settle(self, node_id: NodeId, batch: _Batch, results: Sequence[BlockReadResult | None]) -> None:
        """The node has ended its reads: keep what was read, if anybody may still want it."""
        right: list[tuple[BlockKey, SlotId]] = []
        late: set[SlotId] = set()
        not_begun: list[int] = []
        for load, result in zip(batch.loads, results, strict=True):
            if result is None:
                not_begun.append(load.block)
            elif result.status is ReadStatus.OK:
                right.append((load.key, load.slot))
            elif result.status is ReadStatus.TIMED_OUT:
                late.add(load.slot)
        if not_begun:
            self._busy.add(node_id)
            batch.context.next_block = min(not_begun)
        self._num_blocks += len(right)
        self._loans.end_ahead(node_id, batch.slots, right if batch.epoch == self._epoch else (), late)

"""Reads contexts ahead while their agents wait for tools, as engines.prefetcher does, in virtual time.

Where a context goes is decided in engines.scheduling.prefetch. A node reads ahead only while it has nothing
else to do, a few blocks at a time, so a turn never waits for more than those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.prefetch import NodeMemory, choose_node
from engines.sim.kept_blocks import KeptBlocks
from engines.sim.snic import SimSnic
from engines.slot_queue import SlotQueue
from engines.types import NodeId


@dataclass(slots=True, eq=False)
class _Context:
    agent: int
    node_id: NodeId
    blocks: int
    """That are to be in the node's memory."""


class SimPrefetcher:
    """One per simulation; it does nothing unless `prefetch` is set."""

    def __init__(
        self,
        num_at_once: int,
        placement: ClusterPlacement,
        snics: Mapping[NodeId, SimSnic],
        kept: Mapping[NodeId, KeptBlocks],
        slot_queue: SlotQueue,
    ) -> None:
        """A node reads `num_at_once` blocks ahead and looks again; 0: never."""
        self._num_at_once = num_at_once
        self._placement = placement
        self._snics = snics
        self._kept = kept
        self._slot_queue = slot_queue
        self._contexts: dict[int, _Context] = {}
        """By agent, in the order in which they began to wait."""
        self._reading: dict[NodeId, tuple[_Context, int]] = {}

    @property
    def is_on(self) -> bool:
        return self._num_at_once > 0

    def begin(self, agent: int, context_blocks: int) -> None:
        """The agent waits for a tool; so many blocks of its context are stored."""
        memories = (
            NodeMemory(
                node_id,
                num_kept=min(kept.of(agent), context_blocks),
                num_room=kept.num_holdable,
                queue_tokens=self._placement.queues.tokens(node_id),
            )
            for node_id, kept in self._kept.items()
        )
        chosen = choose_node(memories, context_blocks)
        if chosen is None:
            return
        context = _Context(agent, chosen.node_id, min(context_blocks, chosen.num_room))
        self._contexts[agent] = context
        self._kept[chosen.node_id].hold(agent, context.blocks)
        self.go_on(chosen.node_id)

    def end(self, agent: int) -> None:
        """The agent goes on. What is being read for it still is, and is kept."""
        context = self._contexts.pop(agent, None)
        if context is not None:
            self._kept[context.node_id].let_go(agent)

    def go_on(self, node_id: NodeId) -> None:
        """Have the node read ahead, if it has nothing better to do."""
        if node_id in self._reading or not self._snics[node_id].is_idle:
            return
        if self._placement.queues.tokens(node_id) > 0 or self._slot_queue.waits_for(node_id):
            return
        kept = self._kept[node_id]
        for context in self._contexts.values():
            lacking = context.blocks - kept.of(context.agent) if context.node_id == node_id else 0
            if lacking > 0:
                blocks = min(lacking, self._num_at_once)
                self._reading[node_id] = (context, kept.of(context.agent) + blocks)
                self._snics[node_id].read_ahead(blocks)
                return

    def read(self, node_id: NodeId) -> None:
        """The node has read what it was told to read ahead."""
        context, blocks = self._reading.pop(node_id)
        self._kept[node_id].keep(context.agent, blocks)
        self.go_on(node_id)

    def best_memory(self, agent: int, hit_blocks: int) -> tuple[NodeId | None, int]:
        """The node that keeps most of the agent's hit, and how many blocks; None where none does."""
        if not self.is_on:
            return None, 0
        node_id = max(self._kept, key=lambda node_id: self._kept[node_id].of(agent))
        blocks = min(self._kept[node_id].of(agent), hit_blocks)
        return (node_id, blocks) if blocks else (None, 0)

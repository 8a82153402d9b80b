"""Chooses the read plan of each turn, and knows how much every node still has to read.

It holds the books that the pure policy in engines.scheduling.read_sides is asked with: the read queue of
every node, in tokens, and how many plans there were. Placement is not its business. Nodes are configured
alike, so every storage NIC counts as carrying the same, and only the queues tell the sides apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from engines.config import ReadPlanName
from engines.scheduling import read_plan, read_sides
from engines.scheduling.read_queues import ReadQueues
from engines.scheduling.read_sides import SideLoad
from engines.types import NodeId, Placement, ReadRange, ReadSide, RequestId
from kvstore.keys import BlockKey
from kvstore.prefix_index import IndexedBlock


class ReadPlanner:
    """One per scheduler. What `begin` adds to the queues, `end` takes away."""

    def __init__(self, name: ReadPlanName) -> None:
        self._name = name
        self._queues = ReadQueues()
        self._finished: Counter[NodeId] = Counter()
        self._reading: dict[RequestId, dict[ReadSide, tuple[NodeId, int]]] = {}
        """Per placed turn and side: the node that reads, and its tokens."""
        self._late: dict[NodeId, int] = {}
        self._num_planned = 0
        self._block_tokens = 1

    def add_node(self, node_id: NodeId, block_tokens: int) -> None:
        """A node with nothing to read; all have blocks of one size."""
        self._queues.add_node(node_id)
        self._block_tokens = block_tokens

    def queue_tokens(self, node_id: NodeId) -> int:
        """Tokens that the node has not finished reading: for placed turns, and too late for others."""
        return self._queues.tokens(node_id) + self._late.get(node_id, 0) * self._block_tokens

    def set_late(self, node_id: NodeId, num_blocks: int) -> None:
        """The node still reads so many blocks that nobody waits for any more.

        So a turn that lost them is not sent to the same side at once, to lose half of what is left.
        """
        self._late[node_id] = num_blocks

    def plan(
        self,
        hit: tuple[IndexedBlock, ...],
        prefill_node: NodeId,
        decode_node: NodeId,
        in_dram: Set[BlockKey] = frozenset(),
    ) -> tuple[ReadRange, ...]:
        """Where the hit would be read now; it counts once the turn is placed."""
        if self._name == "basic" or not hit:
            return read_plan.basic(hit, in_dram)
        if self._name == "alternate":
            return read_sides.alternate(hit, self._num_planned, in_dram=in_dram)
        block_bytes = hit[0].location.nbytes
        prefill, decode = self._load(prefill_node, block_bytes), self._load(decode_node, block_bytes)
        choose = read_sides.dual if self._name == "dual" else read_sides.split
        return choose(hit, prefill, decode, in_dram=in_dram)

    def begin(self, placement: Placement) -> None:
        """The turn is placed: its nodes will read."""
        reading = {
            side: (placement.read_node(side), num_blocks * self._block_tokens)
            for side in (ReadSide.PREFILL, ReadSide.DECODE)
            if (num_blocks := len(read_plan.keys_on(side, placement.read_plan)))
        }
        if reading:
            self._reading[placement.request_id] = reading
            self._num_planned += 1
        for node_id, tokens in reading.values():
            self._queues.plan({node_id: tokens})

    def end(self, request_id: RequestId, *sides: ReadSide) -> None:
        """These sides have read all of the turn's that they will, or failed to. Idempotent."""
        reading = self._reading.get(request_id, {})
        for side in sides:
            if side in reading:
                node_id, tokens = reading.pop(side)
                self._finished[node_id] += tokens
                self._queues.report(node_id, self._finished[node_id])
        if not reading:
            self._reading.pop(request_id, None)

    def check(self) -> None:
        """Raise AssertionError unless the queues are what placed turns have not read."""
        self._queues.check()
        waiting: Counter[NodeId] = Counter()
        for reading in self._reading.values():
            for node_id, tokens in reading.values():
                waiting[node_id] += tokens
        for node_id in {*waiting, *self._finished}:
            assert self._queues.tokens(node_id) == waiting[node_id], node_id

    def _load(self, node_id: NodeId, block_bytes: int) -> SideLoad:
        """Any rate will do that is the same for all."""
        queue_blocks = self.queue_tokens(node_id) / self._block_tokens
        return SideLoad(queue_blocks * block_bytes, bytes_per_s=1.0)

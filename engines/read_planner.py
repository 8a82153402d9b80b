"""Which side reads how much of each turn's hit, and how fast every node has turned out to read.

It asks the pure policy in engines.scheduling.read_sides with what every node still has to read (the queues of
ClusterPlacement) and with what its storage NIC carries: as configured, then as measured by its reports. Where
nobody knows a rate, a node counts as fast as the mean of the others. Who is placed where, and slots, are not
its business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.config import SchedulerConfig
from engines.read_messages import MovedBlock, ReadReport
from engines.scheduling import read_plan, read_sides
from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.engine_choice import EnginePair
from engines.scheduling.read_rate import ReadRate
from engines.scheduling.read_sides import SideLoad
from engines.types import NodeId, ReadRange, ReadSide, RequestId
from kvstore.indexed_blocks import IndexedBlocks
from kvstore.keys import BlockKey
from kvstore.layout import BlockLayout

SIDES = (ReadSide.PREFILL, ReadSide.DECODE)


@dataclass(slots=True)
class _Reading:
    """What one placed turn reads, in tokens by side."""

    nodes: dict[ReadSide, NodeId]
    open: dict[ReadSide, int]
    """To be read there, as far as anybody knows."""
    came: dict[ReadSide, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    """Ordered there from the other side, less what was ordered away again."""


@dataclass(slots=True)
class _Measured:
    """A node's totals when it last reported that something had arrived, and its rate; None until then."""

    read_bytes: int = 0
    busy_s: float = 0.0
    rate: ReadRate | None = None
    at_most: float = math.inf
    """Bytes/s that it can carry at most, as nothing has arrived since."""


class ReadPlanner:
    """One per scheduler. What `begin` and `move` add to the queues, `end` takes away."""

    def __init__(
        self,
        config: SchedulerConfig,
        placement: ClusterPlacement,
        layout: BlockLayout,
        snic_bytes_per_s: float | None = None,
    ) -> None:
        """`snic_bytes_per_s` is what every node's storage NIC carries; None: unknown."""
        self._config = config
        self._placement = placement
        self._layout = layout
        self._snic_bytes_per_s = snic_bytes_per_s
        self._tie = ReadSide(config.read_tie)
        self._measured: dict[NodeId, _Measured] = {}
        self._reading: dict[RequestId, _Reading] = {}
        self._num_planned = 0
        self.moved_ranges = 0
        """Spans that were ordered to change sides."""
        self.moved_blocks = 0
        """Blocks that were read on another side than their placement said."""

    def add_node(self, node_id: NodeId) -> None:
        """A node that has read nothing yet; one that comes back starts anew."""
        rate = self._snic_bytes_per_s
        self._measured[node_id] = _Measured(rate=None if rate is None else self._read_rate(rate))

    # -- plans ---------------------------------------------------------------------------------------

    def plan(
        self, pair: EnginePair, hit: IndexedBlocks, in_dram: set[BlockKey], now_s: float
    ) -> tuple[ReadRange, ...]:
        """Where the hit would be read now; it counts once the turn is placed."""
        share = read_sides.blocks_on_prefill(
            self._config.read_plan,
            sum(key not in in_dram for key in hit.keys) if in_dram else len(hit),
            hit.record_bytes,
            lambda: self.loads(pair, hit.record_bytes, now_s),
            num_planned=self._num_planned,
            tie=self._tie,
        )
        return read_plan.ranges_of(hit, share, in_dram)

    def loads(self, pair: EnginePair, block_bytes: int, now_s: float) -> tuple[SideLoad, SideLoad]:
        """What counts against reading blocks of this size on the prefill side, and on the decode side."""
        prefill, decode = self._placement.read_tokens_ahead(pair, now_s)
        return (
            self._load(pair.prefill.node_id, prefill, block_bytes),
            self._load(pair.decode.node_id, decode, block_bytes),
        )

    def sides(self, pair: EnginePair, block_bytes: int, now_s: float) -> tuple[SideLoad, ...]:
        """The sides that a plan made now would read on."""
        return read_sides.sides_read(self._config.read_plan, *self.loads(pair, block_bytes, now_s), self._tie)

    @property
    def knows_rates(self) -> bool:
        """Whether any storage NIC's rate was set or measured."""
        return any(each.rate is not None for each in self._measured.values())

    def begin(self, pair: EnginePair, plan: tuple[ReadRange, ...], now_s: float) -> None:
        """The turn is placed: its nodes will read."""
        tokens = {side: read_plan.num_on(side, plan) * self._layout.block_tokens for side in SIDES}
        nodes = {ReadSide.PREFILL: pair.prefill.node_id, ReadSide.DECODE: pair.decode.node_id}
        self._placement.plan_reads(pair, tokens[ReadSide.PREFILL], tokens[ReadSide.DECODE], now_s)
        if any(tokens.values()):
            self._reading[pair.turn.request_id] = _Reading(nodes, tokens)
            self._num_planned += 1

    def move(self, request_id: RequestId, to_side: ReadSide, num_blocks: int, now_s: float) -> None:
        """The turn's other side is told to give up so many blocks to this one."""
        reading = self._reading[request_id]
        giver = other(to_side)
        tokens = min(num_blocks * self._layout.block_tokens, reading.open[giver])
        self._placement.move_reads(reading.nodes[giver], reading.nodes[to_side], tokens, now_s)
        for side, change in ((to_side, tokens), (giver, -tokens)):
            reading.open[side] += change
            reading.came[side] += change
        self.moved_ranges += 1

    def end(self, request_id: RequestId, moved: Sequence[MovedBlock] = ()) -> None:
        """Both sides have read all of the turn's that they will; `moved` blocks elsewhere than planned.

        Idempotent. Blocks that were ordered away but had been begun were never the other side's.
        """
        reading = self._reading.pop(request_id, None)
        if reading is None:
            return
        self.moved_blocks += len(moved)
        open_on: dict[NodeId, int] = {}
        untold_on: dict[NodeId, int] = {}
        for side in SIDES:
            node_id = reading.nodes[side]
            came = sum(block.side is side for block in moved) * self._layout.block_tokens
            open_on[node_id] = open_on.get(node_id, 0) + reading.open[side]
            untold_on[node_id] = untold_on.get(node_id, 0) + max(reading.came[side] - came, 0)
        self._placement.end_reads(open_on, untold_on)

    def set_late(self, node_id: NodeId, num_blocks: int) -> None:
        """The node still reads so many blocks that nobody waits for any more."""
        self._placement.set_late_reads(node_id, num_blocks * self._layout.block_tokens)

    # -- reports -------------------------------------------------------------------------------------

    def report(self, report: ReadReport) -> None:
        """What a node has read since it started; one that comes late changes nothing."""
        self._placement.report_reads(report.node_id, report.finished_tokens)
        before = self._measured[report.node_id]
        nbytes, busy_s = report.read_bytes - before.read_bytes, report.busy_s - before.busy_s
        if nbytes < 0 or busy_s < 0:
            return
        if not nbytes:
            # What is in flight has not arrived in all this time. The time counts when something has.
            in_flight = min((unread.ahead_bytes for unread in report.unread), default=0)
            before.at_most = in_flight / busy_s if in_flight and busy_s else math.inf
            return
        before.read_bytes, before.busy_s, before.at_most = report.read_bytes, report.busy_s, math.inf
        if before.rate is None and busy_s:
            before.rate = self._read_rate(nbytes / busy_s)
        elif before.rate is not None:
            before.rate.observe(nbytes, busy_s)

    def bytes_per_s(self, node_id: NodeId) -> float:
        """What the node's storage NIC carries, as far as anybody knows."""
        measured = self._measured[node_id]
        if measured.rate is not None:
            return min(measured.rate.bytes_per_s, measured.at_most)
        known = [each.rate.bytes_per_s for each in self._measured.values() if each.rate is not None]
        return min(sum(known) / len(known), measured.at_most) if known else 1.0

    def queue_load(self, node_id: NodeId, block_bytes: int) -> SideLoad:
        """All that the node was told to read and has not, in blocks of this size, at its rate."""
        return self._load(node_id, self._placement.queues.planned_tokens(node_id), block_bytes)

    def knows(self, request_id: RequestId) -> bool:
        """Whether the turn's reads are not over."""
        return request_id in self._reading

    def figures(self) -> dict[str, float]:
        """Tokens that nodes have to read, and what changed sides."""
        queues = [self._placement.queues.tokens(node_id) for node_id in self._measured]
        return {
            "read_queue_tokens": sum(queues),
            "read_queue_tokens_max": max(queues, default=0),
            "moved_ranges": self.moved_ranges,
            "moved_blocks": self.moved_blocks,
        }

    def _load(self, node_id: NodeId, tokens: float, block_bytes: int) -> SideLoad:
        return SideLoad(tokens / self._layout.block_tokens * block_bytes, self.bytes_per_s(node_id))

    def _read_rate(self, bytes_per_s: float) -> ReadRate:
        memory_bytes = max(bytes_per_s * self._config.read_rate_memory_s, self._layout.full_block_bytes)
        return ReadRate(bytes_per_s, memory_bytes)


def other(side: ReadSide) -> ReadSide:
    """The side across."""
    return ReadSide.DECODE if side is ReadSide.PREFILL else ReadSide.PREFILL

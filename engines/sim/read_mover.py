"""Which reads change sides while they wait, as engines.read_mover has it: `split` only.

What engines.scheduling.rebalance decides is carried out at once: a read that has not begun gives up its end.
"""

from __future__ import annotations

from collections.abc import Mapping

from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.read_sides import SideLoad
from engines.scheduling.rebalance import UnreadBlocks, rebalance
from engines.sim.snic import SimSnic
from engines.sim.spec import SimSpec
from engines.sim.turn import SimTurn
from engines.slot_queue import SlotQueue
from engines.types import NodeId, ReadSide

_REPORT_S = 0.1
"""Shortest time between two looks at a node's queue."""


class SimReadMover:
    """One per simulation."""

    def __init__(
        self,
        spec: SimSpec,
        placement: ClusterPlacement,
        snics: Mapping[NodeId, SimSnic],
        slot_queue: SlotQueue,
    ) -> None:
        self._spec = spec
        self._placement = placement
        self._snics = snics
        self._slot_queue = slot_queue
        self._is_on = spec.scheduler.rebalance and spec.scheduler.read_plan == "split"
        self._rate = spec.cluster.rates.snic_bytes_per_s or 1.0
        self._looked_s: dict[NodeId, float] = {}
        self.num_moved_blocks = 0

    def report(self, snic: SimSnic, now_s: float) -> None:
        """The node reports: what of its queue would be read sooner elsewhere goes there."""
        node_id = snic.node.node_id
        if not self._is_on or now_s < self._looked_s.get(node_id, 0.0) + _REPORT_S:
            return
        self._looked_s[node_id] = now_s
        ahead_bytes = snic.ahead_bytes
        for read in list(snic.queued):
            if read.turn is not None:
                self._consider(snic, read.turn, read.blocks, ahead_bytes, now_s)
            ahead_bytes += read.blocks * self._spec.block_bytes

    def _consider(self, snic: SimSnic, turn: SimTurn, blocks: int, ahead_bytes: float, now_s: float) -> None:
        pair = turn.pair
        assert pair is not None, turn.request_id
        on_prefill = snic.node is turn.prefill_gpu.node
        taker = pair.decode.node_id if on_prefill else pair.prefill.node_id
        block_bytes = self._spec.block_bytes
        unit = block_bytes / self._spec.block_tokens
        here = UnreadBlocks(((0, blocks),), SideLoad(ahead_bytes, self._rate))
        queue_bytes = self._placement.queues.planned_tokens(taker) * unit
        there = UnreadBlocks((), SideLoad(queue_bytes, self._rate))
        move = rebalance(
            here if on_prefill else there,
            there if on_prefill else here,
            block_bytes=block_bytes,
            free_prefill_slots=0 if on_prefill else self._free_slots(turn),
            min_gain=self._spec.scheduler.rebalance_gain,
            min_blocks=self._spec.scheduler.rebalance_min_blocks,
        )
        if move is not None:
            self._move(snic, turn, move.to_side, move.num_blocks, now_s)

    def _free_slots(self, turn: SimTurn) -> int:
        """Slots of the prefill node that nobody who waits is to have."""
        node = turn.prefill_gpu.node
        return 0 if self._slot_queue.waits_for(node.node_id) else node.free_blocks

    def _move(self, snic: SimSnic, turn: SimTurn, to_side: ReadSide, blocks: int, now_s: float) -> None:
        to_prefill = to_side is ReadSide.PREFILL
        taker = turn.prefill_gpu.node if to_prefill else turn.decode_gpu.node
        change = blocks if to_prefill else -blocks
        turn.on_prefill += change
        turn.on_decode -= change
        turn.prefill_gpu.node.free_blocks -= change
        tokens = blocks * self._spec.block_tokens
        self._placement.move_reads(snic.node.node_id, taker.node_id, tokens, now_s)
        self.num_moved_blocks += blocks
        turn.reads_left += 1 - snic.give_up(turn, blocks)
        self._snics[taker.node_id].read(turn, blocks)
        self._placement.report_reads(snic.node.node_id, snic.num_finished * self._spec.block_tokens)

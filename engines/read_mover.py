"""Which reads change sides while they wait: the answer to a node's report.

A node that reports has blocks it has not begun. Whether some of them would be read sooner on the turn's other
side is decided in engines.scheduling.rebalance, from what both nodes still have to read and how fast they
have turned out to be; slots for what moves to the prefill side are lent at once or nothing moves. The order
goes to the node that gives up: what it has begun by then stays with it, so what became of each block is told
by the prefill engine when it is done. An order that gets lost costs nothing but the move.
"""

from __future__ import annotations

from engines.config import SchedulerConfig
from engines.loan import Loan
from engines.loans import Loans
from engines.read_messages import MoveOrder, ReadReport, UnreadReads
from engines.read_planner import ReadPlanner, other
from engines.scheduling.read_sides import SideLoad
from engines.scheduling.rebalance import ReadMove, UnreadBlocks, rebalance
from engines.slot_queue import SlotQueue
from engines.types import ReadSide


class ReadMover:
    """One per scheduler."""

    def __init__(
        self, config: SchedulerConfig, loans: Loans, planner: ReadPlanner, slot_queue: SlotQueue
    ) -> None:
        self._config = config
        self._loans = loans
        self._planner = planner
        self._slot_queue = slot_queue

    def orders(self, report: ReadReport, now_s: float) -> tuple[MoveOrder, ...]:
        """What the node is to give up, at most one order a turn; `report` has been counted already."""
        if not self._config.rebalance or self._config.read_plan != "split":
            return ()
        orders = []
        given_bytes = 0
        for unread in report.unread:
            loan = self._loans.get(unread.request_id)
            if loan is None or not loan.prefilling or not self._planner.knows(unread.request_id):
                continue
            block_bytes = _block_bytes(loan)
            move = self._choose(loan, unread, max(unread.ahead_bytes - given_bytes, 0), block_bytes)
            order = None if move is None else self._order(loan, move)
            if move is not None and order is not None:
                self._planner.move(unread.request_id, move.to_side, move.num_blocks, now_s)
                given_bytes += move.num_blocks * block_bytes
                orders.append(order)
        return tuple(orders)

    def _choose(self, loan: Loan, unread: UnreadReads, ahead_bytes: int, block_bytes: int) -> ReadMove | None:
        """What moves from the side that reported: what moves there is the other one's to give up."""
        placement, to_side = loan.placement, other(unread.side)
        giver, taker = placement.read_node(unread.side), placement.read_node(to_side)
        if giver == taker:
            return None
        here = UnreadBlocks(unread.spans, SideLoad(ahead_bytes, self._planner.bytes_per_s(giver)))
        # What moves is read behind all that waits there, the turn's own blocks too.
        there = UnreadBlocks((), self._planner.queue_load(taker, block_bytes))
        on_prefill = unread.side is ReadSide.PREFILL
        return rebalance(
            here if on_prefill else there,
            there if on_prefill else here,
            block_bytes=block_bytes,
            free_prefill_slots=0 if on_prefill else self._free_slots(loan),
            min_gain=self._config.rebalance_gain,
            min_blocks=self._config.rebalance_min_blocks,
        )

    def _free_slots(self, loan: Loan) -> int:
        """Slots of the prefill node that nobody who waits is to have."""
        node_id = loan.placement.prefill_node
        return 0 if self._slot_queue.waits_for(node_id) else self._loans.node(node_id).num_takeable()

    def _order(self, loan: Loan, move: ReadMove) -> MoveOrder | None:
        slots = None
        if move.to_side is ReadSide.PREFILL:
            slots = self._loans.lend_more(loan, [n for start, end in move.spans for n in range(start, end)])
            if slots is None:
                return None
        return MoveOrder(loan.placement.request_id, move.to_side, move.spans, slots or ())


def _block_bytes(loan: Loan) -> int:
    """Bytes of a block's record; blocks of one prompt are of one size."""
    return max(part.blocks.record_bytes for part in loan.placement.read_plan)

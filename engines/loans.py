"""What slots of which node the scheduler has lent to whom.

Pure bookkeeping: it decides neither who is served nor where, and knows nothing of stored blocks nor of loads
(engines.scheduling.cluster_placement does). The slots of one node are in engines.node_slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from itertools import islice

from engines.loan import Loan
from engines.node_slots import NodeSlots
from engines.read_messages import LostBlock, MovedBlock
from engines.scheduling import read_plan
from engines.types import EngineId, NodeId, Placement, ReadRange, ReadSide, RequestId, SlotId
from kvstore.keys import BlockKey


class Loans:
    """One per scheduler. Every loan begins with `lend` and ends by `take_back` and `release`."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, NodeSlots] = {}
        self._loans: dict[RequestId, Loan] = {}
        self._freed: set[NodeId] = set()

    def __len__(self) -> int:
        """Placed turns that still have something."""
        return len(self._loans)

    def add_node(self, node_id: NodeId, num_slots: int, max_dram_slots: int) -> None:
        self._nodes[node_id] = NodeSlots(num_slots, max_dram_slots)

    def node(self, node_id: NodeId) -> NodeSlots:
        """The node's slots, to look at."""
        return self._nodes[node_id]

    def forget_node(self, node_id: NodeId, num_slots: int, max_dram_slots: int) -> list[Loan]:
        """The node's memory is gone and it has new memory, of which nobody has anything; loans that had.

        Those that have nothing else and are finished are over.
        """
        lost = [loan for loan in self._loans.values() if node_id in loan.slots]
        for loan in lost:
            del loan.slots[node_id]
            if loan.placement.prefill_node == node_id:
                loan.prefill_slots, loan.shared = set(), []
            self._drop_if_over(loan)
        self.add_node(node_id, num_slots, max_dram_slots)
        self._freed.add(node_id)
        return lost

    def of_client(self, name: str, but: str) -> list[Loan]:
        """Those of all of the client's processes `but` one."""
        mine = (loan for loan in self._loans.values() if loan.client.startswith(f"{name}/"))
        return [loan for loan in mine if loan.client != but]

    def get(self, request_id: RequestId) -> Loan | None:
        return self._loans.get(request_id)

    def with_decode_engine(self, engine_id: EngineId) -> list[Loan]:
        return [loan for loan in self._loans.values() if loan.placement.decode_engine == engine_id]

    # -- a loan's life -------------------------------------------------------------------------------

    def in_dram(self, node_id: NodeId, keys: Iterable[BlockKey]) -> set[BlockKey]:
        """Those of `keys` that the node keeps in its memory."""
        dram = self._nodes[node_id].dram
        return {key for key in keys if dram.find(key) is not None} if len(dram) else set()

    def reserve(
        self, plan: tuple[ReadRange, ...], prefill_node: NodeId, decode_node: NodeId, num_decode: int
    ) -> tuple[tuple[SlotId, ...], tuple[SlotId, ...]] | None:
        """Slots for the plan's blocks on the prefill side, and `num_decode` on the other; all, or None."""
        keys = read_plan.keys_on(ReadSide.DRAM, plan)
        num_own = read_plan.num_on(ReadSide.PREFILL, plan)
        node, other = self._nodes[prefill_node], self._nodes[decode_node]
        num_here = num_own + (num_decode if other is node else 0)
        if node.num_takeable(keys) < num_here:
            return None
        if other.num_takeable(keys if other is node else ()) < num_decode:
            return None
        shared = iter([SlotId(node.dram.use(key)) for key in keys])
        own, decode = iter(node.take(num_own)), other.take(num_decode)
        prefill: list[SlotId] = []
        for part in plan:
            if part.side is not ReadSide.DECODE:
                prefill += islice(shared if part.side is ReadSide.DRAM else own, len(part.blocks))
        return tuple(prefill), decode

    def lend(self, placement: Placement, new_keys: tuple[BlockKey, ...], client: str = "") -> Loan:
        """What was reserved for `placement` is the turn's now."""
        loan = Loan(placement, new_keys, client)
        keys = read_plan.keys_on(ReadSide.DRAM, placement.read_plan)
        dram = self._nodes[placement.prefill_node].dram
        loan.shared = [(key, SlotId(slot)) for key in keys if (slot := dram.find(key)) is not None]
        loan.prefill_slots = set(placement.prefill_slots)
        loan.prefill_slots.difference_update(slot for _, slot in loan.shared)
        loan.slots[placement.prefill_node] = set(loan.prefill_slots)
        loan.slots.setdefault(placement.decode_node, set()).update(placement.decode_slots)
        self._loans[placement.request_id] = loan
        return loan

    def lend_more(self, loan: Loan, blocks: Sequence[int]) -> tuple[SlotId, ...] | None:
        """Slots of the prefill node for these blocks, which are to be read there after all; all, or None.

        A block that was to be read there before has its slot still.
        """
        lacking = [block for block in blocks if loan.prefill_slot(block) is None]
        node_id = loan.placement.prefill_node
        if self._nodes[node_id].num_takeable() < len(lacking):
            return None
        more = self._nodes[node_id].take(len(lacking))
        loan.moved_slots.update(zip(lacking, more, strict=True))
        loan.prefill_slots.update(more)
        loan.slots[node_id].update(more)
        return tuple(slot for block in blocks if (slot := loan.prefill_slot(block)) is not None)

    def hand_over(self, loan: Loan, moved: Sequence[MovedBlock], *, keep: bool) -> None:
        """The decode side has all of the prompt: free the prefill slots, or `keep` in DRAM what they hold.

        `moved` are the blocks that were read on another side than the placement says.
        """
        loan.handed_over = True
        if keep and self._nodes[loan.placement.prefill_node].dram.max_slots and loan.prefill_slots:
            self._keep_in_dram(loan, moved)
        self.release(loan, loan.placement.prefill_node, loan.prefill_slots)
        self._unshare(loan)

    def finish(self, loan: Loan) -> None:
        """The attempt is over."""
        loan.finished = True
        self._drop_if_over(loan)

    def release(self, loan: Loan, node_id: NodeId, slots: Iterable[SlotId]) -> None:
        """Free those of `slots` that are the turn's own."""
        held = loan.slots.get(node_id, set())
        returning = held.intersection(slots)
        held -= returning
        self._nodes[node_id].pool.give_back(returning)
        self._freed.add(node_id)
        self._drop_if_over(loan)

    def take_back(self, loan: Loan, lost: Iterable[LostBlock] = ()) -> None:
        """Free all that the turn has; slots of `lost` blocks that are late only when they have settled."""
        late = {(loan.placement.read_node(block.side), block.slot) for block in lost if block.late}
        late -= loan.settled
        for node_id, slots in loan.slots.items():
            self._nodes[node_id].give_back_unless_late(
                slots, {slot for node, slot in late if node == node_id}
            )
            self._freed.add(node_id)
        loan.slots.clear()
        self._unshare(loan)
        self._drop_if_over(loan)

    def quarantine(
        self, loan: Loan, safe_nodes: frozenset[NodeId] = frozenset()
    ) -> dict[NodeId, list[SlotId]]:
        """Somebody may still read or write what the turn has, but for what it has on `safe_nodes`, which is
        freed: nobody else gets it until `trust`. What that is, by node."""
        request_id, prefill_node = loan.placement.request_id, loan.placement.prefill_node
        doubted: dict[NodeId, list[SlotId]] = {}
        for node_id, slots in loan.slots.items():
            if node_id in safe_nodes:
                self._nodes[node_id].pool.give_back(slots)
                self._freed.add(node_id)
            else:
                self._nodes[node_id].doubt(request_id, slots)
                doubted[node_id] = list(slots)
        if prefill_node not in safe_nodes:
            for key, slot in loan.shared:
                self._nodes[prefill_node].doubt_kept(request_id, key, slot)
                doubted.setdefault(prefill_node, []).append(slot)
        loan.slots.clear()
        self._unshare(loan)
        self._drop_if_over(loan)
        return {node_id: slots for node_id, slots in doubted.items() if slots}

    def trust(self, request_id: RequestId, node_id: NodeId) -> None:
        """Nobody touches slots of the node for this turn any more, which broke: they are free. Idempotent."""
        self._nodes[node_id].trust(request_id)
        self._freed.add(node_id)

    # -- what becomes of slots -----------------------------------------------------------------------

    def settled(self, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        """No late read writes into these slots of the node any more."""
        self._nodes[node_id].settled(slots)
        self._freed.add(node_id)
        for loan in self._loans.values():
            if loan.prefilling:
                own = loan.slots.get(node_id, set()).intersection(slots)
                loan.settled |= {(node_id, slot) for slot in own}

    def drop_from_dram(self, node_id: NodeId, blocks: Iterable[LostBlock]) -> None:
        """These blocks are not what was kept; who uses their slots now will find out."""
        for block in blocks:
            self._nodes[node_id].drop(block.key, block.slot)

    def empty_dram(self) -> None:
        """No block that is kept will be asked for again."""
        for node in self._nodes.values():
            node.empty_dram()
        self._freed.update(self._nodes)

    def end_ahead(
        self,
        node_id: NodeId,
        slots: Iterable[SlotId],
        right: Sequence[tuple[BlockKey, SlotId]],
        late: Set[SlotId],
    ) -> None:
        """As NodeSlots.end_ahead; slots may have come back."""
        self._nodes[node_id].end_ahead(slots, right, late)
        self._freed.add(node_id)

    # -- the whole -----------------------------------------------------------------------------------

    def take_freed(self) -> set[NodeId]:
        """Nodes where slots came back since this was asked last."""
        freed, self._freed = self._freed, set()
        return freed

    def figures(self) -> dict[str, float]:
        """Slots by state, over all nodes."""
        nodes = self._nodes.values()
        return {
            "free_slots": sum(node.pool.num_free for node in nodes),
            "dram_slots": sum(len(node.dram) for node in nodes),
            "held_blocks": sum(node.dram.num_held for node in nodes),
            "quarantined_slots": sum(node.pool.num_quarantined for node in nodes),
        }

    def check(self) -> None:
        """Raise AssertionError unless every slot is in one state."""
        for node_id, node in self._nodes.items():
            lent = [slot for loan in self._loans.values() for slot in loan.slots.get(node_id, ())]
            here = [loan for loan in self._loans.values() if loan.placement.prefill_node == node_id]
            node.check(lent, num_users=sum(len(loan.shared) for loan in here))

    # -- inside --------------------------------------------------------------------------------------

    def _keep_in_dram(self, loan: Loan, moved: Sequence[MovedBlock]) -> None:
        """The blocks the turn has read are right: they stay in DRAM as far as there is room.

        From the last block to the first: the start of a context, which most turns share, goes last.
        """
        node = self._nodes[loan.placement.prefill_node]
        own = loan.slots[loan.placement.prefill_node]
        for key, slot in reversed(loan.read_blocks(moved)):
            own.remove(slot)
            loan.prefill_slots.remove(slot)
            node.keep(key, slot)

    def _unshare(self, loan: Loan) -> None:
        """The turn uses no block in DRAM any more."""
        node = self._nodes[loan.placement.prefill_node]
        for key, slot in reversed(loan.shared):
            node.release(key, slot)
        loan.shared = []
        self._freed.add(loan.placement.prefill_node)

    def _drop_if_over(self, loan: Loan) -> None:
        if loan.over:
            self._loans.pop(loan.placement.request_id, None)

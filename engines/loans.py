"""What slots of which node the scheduler has lent to whom.

Pure bookkeeping: it decides neither who is served nor where, and knows nothing of stored blocks nor of loads
(engines.scheduling.cluster_placement does). A slot of a node is at any time exactly one of

    free | reserved (an engine's own) | lent (one turn's) | in DRAM (keeps a block) | being read ahead into
         | quarantined

A slot in DRAM may be used by any number of turns at once; prompts that need room get it if it is idle.
A slot whose read is late is quarantined until the node says that the read has settled; one whose engine did
not answer stays so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from engines.errors import RequestRefused
from engines.scheduling import read_plan
from engines.types import (
    EngineId,
    EngineInfo,
    EngineRole,
    LostBlock,
    MovedBlock,
    NodeId,
    Placement,
    ReadRange,
    ReadSide,
    RequestId,
    SlotId,
    TurnRequest,
)
from kvstore.dram_tier import DramTier
from kvstore.keys import BlockKey
from kvstore.slots import SlotPool


@dataclass(frozen=True, slots=True)
class _Room:
    """What the largest request may need."""

    slots: int
    sides: int
    """Of a turn that may lie on one node: 2 where a node has both roles."""
    kv_tokens: int


@dataclass(slots=True)
class _Node:
    pool: SlotPool
    dram: DramTier
    num_reserved: int = 0
    late: set[SlotId] = field(default_factory=set)
    """Quarantined until their reads settle."""
    unsafe: set[SlotId] = field(default_factory=set)
    """In DRAM, and quarantined once their last user is done."""
    ahead: set[SlotId] = field(default_factory=set)
    """Blocks are being read into these that no turn has asked for yet."""
    ahead_settled: set[SlotId] = field(default_factory=set)
    """Of these, those whose late reads have settled before anybody said that they were late."""

    def has_room(self, num_slots: int, but: Iterable[BlockKey]) -> bool:
        """Whether so many could be taken, the blocks of `but` left in DRAM."""
        return self.num_takeable(but) >= num_slots

    def num_takeable(self, but: Iterable[BlockKey] = ()) -> int:
        """Slots that a prompt could have."""
        return self.pool.num_free + self.dram.num_idle(but)

    def take(self, num_slots: int) -> tuple[SlotId, ...]:
        self.pool.give_back(self.dram.give_up(num_slots - self.pool.num_free))
        return cast(tuple[SlotId, ...], tuple(self.pool.take(num_slots)))

    def leave_dram(self, slots: Iterable[int]) -> None:
        for slot in map(SlotId, slots):
            if slot in self.unsafe:
                self.unsafe.discard(slot)
                self.pool.quarantine([slot])
            else:
                self.pool.give_back([slot])


@dataclass(slots=True)
class Loan:
    """What one placed turn has."""

    placement: Placement
    new_keys: tuple[BlockKey, ...]
    """Prompt blocks it makes; once it is handed over, the decode engine announces what became of them."""
    prefilling: bool = True
    handed_over: bool = False
    """The decode engine has taken the turn over: it alone gives the decode slots back."""
    finished: bool = False
    slots: dict[NodeId, set[SlotId]] = field(default_factory=dict)
    """Its own slots."""
    prefill_slots: set[SlotId] = field(default_factory=set)
    """Those of them that blocks are read into on the prefill side."""
    moved_slots: dict[int, SlotId] = field(default_factory=dict)
    """Of these, by block, those of blocks that were to be read elsewhere first."""
    shared: list[tuple[BlockKey, SlotId]] = field(default_factory=list)
    """Blocks in the prefill node's DRAM that it uses."""
    settled: set[tuple[NodeId, SlotId]] = field(default_factory=set)
    """Slots whose late reads have settled before anybody said that they were late."""
    segments: frozenset[str] = field(init=False)
    """Segments that blocks of the hit are read from."""

    def __post_init__(self) -> None:
        parts = [part for part in self.placement.read_plan if part.side is not ReadSide.DRAM]
        self.segments = frozenset().union(*(part.blocks.segment_names() for part in parts))

    @property
    def over(self) -> bool:
        return self.finished and not any(self.slots.values())

    def prefill_slot(self, block: int) -> SlotId | None:
        """Its own slot for the prompt's block `block` on the prefill side, if it has one."""
        slot = self.moved_slots.get(block, self.placement.prefill_slot(block))
        return slot if slot in self.prefill_slots else None

    def read_blocks(self, moved: Sequence[MovedBlock]) -> list[tuple[BlockKey, SlotId]]:
        """The hit's blocks that were read from storage into own slots on the prefill node, in order."""
        sides = {block.block: block for block in moved}
        read = []
        for number, (side, slot, block) in enumerate(self.placement.hit_blocks()):
            final = sides.get(number)
            if final is not None:
                side, slot = final.side, final.slot
            if side is ReadSide.PREFILL and slot in self.prefill_slots:
                read.append((block.key, slot))
        return read


class Loans:
    """One per scheduler. Every loan begins with `lend` and ends by `take_back` and `release`."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, _Node] = {}
        self._engines: dict[EngineId, EngineInfo] = {}
        self._room: _Room | None = None
        self._loans: dict[RequestId, Loan] = {}
        self._freed: set[NodeId] = set()

    def __len__(self) -> int:
        """Placed turns that still have something."""
        return len(self._loans)

    # -- who is there --------------------------------------------------------------------------------

    def add_node(self, node_id: NodeId, num_slots: int, max_dram_slots: int) -> None:
        self._nodes[node_id] = _Node(SlotPool(num_slots), DramTier(max_dram_slots))
        self._room = None

    def add_engine(self, info: EngineInfo, num_reserved: int) -> tuple[SlotId, ...]:
        """The slots returned are the engine's own, never lent."""
        self._engines[info.engine_id] = info
        self._room = None
        node = self._nodes[info.node_id]
        node.num_reserved += num_reserved
        return node.take(num_reserved)

    def remove_engine(self, engine_id: EngineId) -> None:
        """The engine is gone. What it reserved stays aside: it may still write there."""
        if self._engines.pop(engine_id, None) is not None:
            self._room = None

    def refuse_misfits(self, request: TurnRequest, block_tokens: int) -> None:
        """Raise RequestRefused for a request that would not even fit an empty cluster."""
        room = self._largest_room()
        needed = room.sides * -(-request.prompt_tokens // block_tokens)
        if needed > room.slots:
            raise RequestRefused(
                f"{request.request_id} needs {needed} staging slots for its {request.prompt_tokens} "
                f"prompt tokens, the smallest node lends {room.slots}; raise kvstore.staging_bytes"
            )
        if request.context_tokens > room.kv_tokens:
            raise RequestRefused(
                f"{request.request_id} may grow to {request.context_tokens} tokens, the largest decode "
                f"engine holds {room.kv_tokens}; raise engines.decode_kv_bytes"
            )

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
        if not node.has_room(num_here, keys) or not other.has_room(num_decode, keys if other is node else ()):
            return None
        shared = iter([SlotId(node.dram.use(key)) for key in keys])
        own, decode = iter(node.take(num_own)), other.take(num_decode)
        prefill: list[SlotId] = []
        for part in plan:
            if part.side is not ReadSide.DECODE:
                prefill += islice(shared if part.side is ReadSide.DRAM else own, len(part.blocks))
        return tuple(prefill), decode

    def lend(self, placement: Placement, new_keys: tuple[BlockKey, ...]) -> Loan:
        """What was reserved for `placement` is the turn's now."""
        loan = Loan(placement, new_keys)
        keys = read_plan.keys_on(ReadSide.DRAM, placement.read_plan)
        dram = self._nodes[placement.prefill_node].dram
        loan.shared = [(key, SlotId(slot)) for key in keys if (slot := dram.find(key)) is not None]
        loan.prefill_slots = set(placement.prefill_slots)
        loan.prefill_slots.difference_update(slot for _, slot in loan.shared)
        loan.slots[placement.prefill_node] = set(loan.prefill_slots)
        loan.slots.setdefault(placement.decode_node, set()).update(placement.decode_slots)
        self._loans[placement.request_id] = loan
        return loan

    def engine(self, engine_id: EngineId) -> EngineInfo:
        return self._engines[engine_id]

    def engines_among(self, parts: Collection[str]) -> frozenset[EngineId]:
        """Engines that are named there, or whose node is."""
        return frozenset(
            info.engine_id
            for info in self._engines.values()
            if info.engine_id in parts or info.node_id in parts
        )

    def with_decode_engine(self, engine_id: EngineId) -> list[Loan]:
        return [loan for loan in self._loans.values() if loan.placement.decode_engine == engine_id]

    def is_mostly_quarantined(self, node_id: NodeId) -> bool:
        """Whether over half of what the node may lend is set aside."""
        node = self._nodes[node_id]
        return 2 * node.pool.num_quarantined > node.pool.num_slots - node.num_reserved

    def num_takeable(self, node_id: NodeId) -> int:
        """Slots that could be lent at once."""
        return self._nodes[node_id].num_takeable()

    def lend_more(self, loan: Loan, blocks: Sequence[int]) -> tuple[SlotId, ...] | None:
        """Slots of the prefill node for these blocks, which are to be read there after all; all, or None.

        A block that was to be read there before has its slot still.
        """
        lacking = [block for block in blocks if loan.prefill_slot(block) is None]
        node_id = loan.placement.prefill_node
        if not self._nodes[node_id].has_room(len(lacking), ()):
            return None
        more = self._nodes[node_id].take(len(lacking))
        loan.moved_slots.update(zip(lacking, more, strict=True))
        loan.prefill_slots.update(more)
        loan.slots[node_id].update(more)
        return tuple(slot for block in blocks if (slot := loan.prefill_slot(block)) is not None)

    def get(self, request_id: RequestId) -> Loan | None:
        return self._loans.get(request_id)

    def hand_over(self, loan: Loan, moved: Sequence[MovedBlock], *, keep: bool) -> None:
        """The decode side has all of the prompt: free the prefill slots, or `keep` in DRAM what they hold.

        `moved` are the blocks that were read on another side than the placement says.
        """
        loan.handed_over = True
        if keep and self._nodes[loan.placement.prefill_node].dram.max_slots:
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
        for node_id, slots in loan.slots.items():
            node = self._nodes[node_id]
            still_late = {slot for slot in slots if (node_id, slot) in late - loan.settled}
            node.pool.quarantine(still_late)
            node.late |= still_late
            node.pool.give_back(slots - still_late)
            self._freed.add(node_id)
        loan.slots.clear()
        self._unshare(loan)
        self._drop_if_over(loan)

    def quarantine(self, loan: Loan, safe_nodes: frozenset[NodeId] = frozenset()) -> None:
        """Somebody may still read or write what the turn has, but for what it has on `safe_nodes`, which is
        freed: nobody else gets it."""
        for node_id, slots in loan.slots.items():
            pool = self._nodes[node_id].pool
            if node_id in safe_nodes:
                pool.give_back(slots)
                self._freed.add(node_id)
            else:
                pool.quarantine(slots)
        loan.slots.clear()
        prefill_node = loan.placement.prefill_node
        node = self._nodes[prefill_node]
        for key, slot in loan.shared if prefill_node not in safe_nodes else ():
            node.unsafe.add(slot)
            if node.dram.find(key) == slot:
                node.dram.drop(key)
        self._unshare(loan)
        self._drop_if_over(loan)

    # -- what becomes of slots -----------------------------------------------------------------------

    def settled(self, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        """No late read writes into these slots of the node any more."""
        node = self._nodes[node_id]
        free = node.late.intersection(slots)
        node.late -= free
        node.pool.release_quarantined(free)
        self._freed.add(node_id)
        node.ahead_settled |= node.ahead.intersection(slots)
        for loan in self._loans.values():
            if loan.prefilling:
                own = loan.slots.get(node_id, set()).intersection(slots)
                loan.settled |= {(node_id, slot) for slot in own}

    def num_late(self, node_id: NodeId) -> int:
        """Slots of the node that wait for a late read to settle."""
        return len(self._nodes[node_id].late)

    def drop_from_dram(self, node_id: NodeId, blocks: Iterable[LostBlock]) -> None:
        """These blocks are not what was kept; who uses their slots now will find out."""
        node = self._nodes[node_id]
        for block in blocks:
            if node.dram.find(block.key) == block.slot:
                node.leave_dram(node.dram.drop(block.key))

    def empty_dram(self) -> None:
        """No block that is kept will be asked for again."""
        for node in self._nodes.values():
            node.leave_dram(node.dram.clear())
        self._freed.update(self._nodes)

    # -- reads ahead of turns ------------------------------------------------------------------------

    def is_in_dram(self, node_id: NodeId, key: BlockKey) -> bool:
        """Whether the node keeps this block in its memory."""
        return self._nodes[node_id].dram.find(key) is not None

    def num_holdable(self, node_id: NodeId) -> int:
        """Blocks that could be held in the node's DRAM beside those that are."""
        dram = self._nodes[node_id].dram
        return max(dram.max_slots - dram.num_held, 0)

    def hold(self, node_id: NodeId, keys: Iterable[BlockKey]) -> None:
        """Somebody will want these blocks: the node keeps them rather than others."""
        self._nodes[node_id].dram.hold(keys)

    def let_go(self, node_id: NodeId, keys: Iterable[BlockKey]) -> None:
        """What `hold` began is over."""
        self._nodes[node_id].dram.let_go(keys)

    def take_ahead(self, node_id: NodeId, num_slots: int) -> tuple[SlotId, ...]:
        """Up to `num_slots` slots to read blocks into that the node can keep; `end_ahead` gives them back."""
        node = self._nodes[node_id]
        num_slots = max(min(num_slots, node.dram.num_room - len(node.ahead)), 0)
        too_many = len(node.dram) + len(node.ahead) + num_slots - node.dram.max_slots
        lacking = num_slots - node.pool.num_free
        node.leave_dram(node.dram.give_up(max(too_many, lacking), held_too=False))
        slots = tuple(map(SlotId, node.pool.take(min(num_slots, node.pool.num_free))))
        node.ahead.update(slots)
        return slots

    def end_ahead(
        self,
        node_id: NodeId,
        slots: Iterable[SlotId],
        right: Sequence[tuple[BlockKey, SlotId]],
        late: Set[SlotId],
    ) -> None:
        """The reads into `slots` are over: keep what is `right`, free the others once they are not `late`."""
        node = self._nodes[node_id]
        ended = node.ahead.intersection(slots)
        still_late = ended & late - node.ahead_settled
        node.ahead -= ended
        node.ahead_settled -= ended
        node.pool.quarantine(still_late)
        node.late |= still_late
        node.pool.give_back(ended - still_late - {slot for _, slot in right})
        for key, slot in reversed(right):
            if slot in ended:
                node.leave_dram(node.dram.offer(key, slot))
        self._freed.add(node_id)

    def quarantine_ahead(self, node_id: NodeId, slots: Iterable[SlotId]) -> None:
        """Nobody knows whether the node still writes into these."""
        node = self._nodes[node_id]
        ended = node.ahead.intersection(slots)
        node.ahead -= ended
        node.pool.quarantine(ended)

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
            node.pool.check()
            node.dram.check()
            lent = [slot for loan in self._loans.values() for slot in loan.slots.get(node_id, ())]
            here = [loan for loan in self._loans.values() if loan.placement.prefill_node == node_id]
            kept = node.dram.slots
            assert len(set(lent)) == len(lent), "a slot is lent twice"
            assert not kept.intersection(lent), "a slot in DRAM is lent"
            assert not node.ahead.intersection(lent, kept), "a slot is lent and read ahead into"
            assert node.unsafe <= kept, "a slot that is not in DRAM is said to be unsafe there"
            used = node.num_reserved + len(lent) + len(kept) + len(node.ahead)
            assert used + node.pool.num_free + node.pool.num_quarantined == node.pool.num_slots, node_id
            assert node.dram.num_users == sum(len(loan.shared) for loan in here), node_id

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
            node.pool.give_back(node.dram.offer(key, slot))

    def _unshare(self, loan: Loan) -> None:
        """The turn uses no block in DRAM any more."""
        node = self._nodes[loan.placement.prefill_node]
        for key, slot in reversed(loan.shared):
            node.leave_dram(node.dram.release(key, slot))
        loan.shared = []
        self._freed.add(loan.placement.prefill_node)

    def _drop_if_over(self, loan: Loan) -> None:
        if loan.over:
            self._loans.pop(loan.placement.request_id, None)

    def _largest_room(self) -> _Room:
        if self._room is None:
            engines = self._engines.values()
            nodes = {role: {info.node_id for info in engines if info.role is role} for role in EngineRole}
            self._room = _Room(
                min(node.pool.num_slots - node.num_reserved for node in self._nodes.values()),
                2 if nodes[EngineRole.PREFILL] & nodes[EngineRole.DECODE] else 1,
                max((info.kv_tokens for info in engines if info.role is EngineRole.DECODE), default=0),
            )
        return self._room

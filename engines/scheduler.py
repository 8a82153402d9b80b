"""The request scheduler: it alone knows the index, the slots of every node and the load of every engine.

A turn waits until it can have everything at once: a prefill engine, a decode engine, decode slots for its
whole prompt and prefill slots for what is read there. So nobody holds while waiting, and the queue is FIFO,
so nobody starves. Which engine and which side is decided in engines.scheduling; who has what is written down
in engines.loans; this class says when. It never sees token ids.

Every placement ends with `finish`, which takes back whatever was not given back before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

from engines.config import SchedulerConfig
from engines.errors import PlacementTimeout, RequestRefused
from engines.loans import Loan, Loans
from engines.read_planner import ReadPlanner
from engines.scheduling.placement import choose_decode, choose_prefill
from engines.store_keeper import StoreKeeper
from engines.turn_queue import TurnQueue, WaitingTurn
from engines.types import (
    AnnouncedBlock,
    EngineInfo,
    EngineRole,
    LostBlock,
    MovedBlock,
    MoveOrder,
    NodeId,
    Placement,
    ReadReport,
    ReadSide,
    RequestId,
    SlotId,
    TurnRequest,
    Weights,
)
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout
from kvstore.prefix_index import IndexedBlock, PrefixIndex


class Scheduler:
    """One per job, on one event loop."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        prefill_load_limit_tokens: int,
        weights: Weights,
        dram_bytes: int = 0,
        keeper: StoreKeeper | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`dram_bytes` of each node's memory may keep blocks. Without a `keeper` nothing is evicted."""
        self._config = config
        self._load_limit_tokens = prefill_load_limit_tokens
        self._weights = weights
        self._dram_bytes = dram_bytes
        self._keeper = keeper
        self._clock = clock
        self._index = PrefixIndex() if keeper is None else keeper.index
        self._layout: BlockLayout | None = None
        self._loans = Loans()
        self._reads = ReadPlanner(config.read_plan)
        self._queue = TurnQueue()
        self._paused = False
        self._changed = asyncio.Event()
        self._lost_blocks = 0

    # -- the cluster ---------------------------------------------------------------------------------

    async def register_node(self, node_id: NodeId, num_slots: int, layout: BlockLayout) -> None:
        """A node's staging memory is at the scheduler's disposal."""
        self._loans.add_node(node_id, num_slots, self._dram_bytes // layout.slot_bytes)
        self._reads.add_node(node_id, layout.block_tokens)
        self._layout = layout

    async def register_engine(self, info: EngineInfo, reserve_slots: int) -> tuple[SlotId, ...]:
        """An engine is ready; the slots returned are its own for persisting, never lent to prompts."""
        return self._loans.add_engine(info, reserve_slots)

    # -- the life of a turn --------------------------------------------------------------------------

    async def submit(self, request: TurnRequest) -> Placement:
        """Wait for a place. Raises RequestRefused or PlacementTimeout, nothing then reserved."""
        self._loans.refuse_misfits(request, self._block_tokens)
        self._refuse_stale(request)
        answer = self._queue.join(request, self._clock()).answer
        try:
            self._place()
            async with asyncio.timeout(request.deadline_s):
                return await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled():
                return answer.result()  # placed in the last moment
            raise PlacementTimeout(
                f"{request.request_id} found no place within {request.deadline_s:.1f} s; "
                f"{len(self._queue)} turns wait, {len(self._loans)} are placed"
            ) from None
        finally:
            self._queue.leave(request.request_id)
            self._place()

    async def reads_done(self, request_id: RequestId, side: ReadSide) -> None:
        """This side has read the turn's blocks: they are in its node's read queue no more.

        One message a turn and side, which the turn does not wait for. A turn that is prefilled or ends says
        it too, so one that is late or lost only keeps a queue long for a while.
        """
        self._reads.end(request_id, side)

    async def report_reads(self, report: ReadReport) -> tuple[MoveOrder, ...]:
        """A node says how far its reads are; the answer says which of them the other side takes over."""
        return ()

    async def prefilled(self, request_id: RequestId, moved: tuple[MovedBlock, ...] = ()) -> None:
        """The prefill engine is done: its slots and its share of load come back."""
        loan = self._loans.get(request_id)
        if loan is None or not loan.prefilling:
            return
        self._end_prefill(loan)
        self._loans.hand_over(loan, keep=loan.placement.weights_id == self._weights.weights_id)
        self._place()

    async def release_slots(self, request_id: RequestId, slots: Sequence[SlotId]) -> None:
        """The decode node needs these slots of the request's no more."""
        loan = self._loans.get(request_id)
        if loan is not None:
            self._loans.release(loan, loan.placement.decode_node, slots)
            self._place()

    async def hit_lost(self, request_id: RequestId, lost: Sequence[LostBlock]) -> None:
        """These blocks of the hit could not be used, which ends the attempt: they are hits no more.

        A block that was not what a node kept in its memory is still read from the store next time. Slots
        whose reads are late are set aside until the node says that they have settled.
        """
        in_dram = [block for block in lost if block.side is ReadSide.DRAM]
        self._lost_blocks += sum(self._index.discard(b.key) for b in lost if b.side is not ReadSide.DRAM)
        loan = self._loans.get(request_id)
        if loan is not None:
            self._loans.drop_from_dram(loan.placement.prefill_node, in_dram)
            self._end(loan)
            self._forget_new_keys(loan)
            self._loans.take_back(loan, lost)
            for node_id in (loan.placement.prefill_node, loan.placement.decode_node):
                self._reads.set_late(node_id, self._loans.num_late(node_id))
        self._place()

    async def settled(self, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        """Late reads have ended: nobody writes into these slots of the node any more."""
        self._loans.settled(node_id, slots)
        self._reads.set_late(node_id, self._loans.num_late(node_id))
        self._place()

    async def finish(self, request_id: RequestId, *, resolved: bool = True) -> None:
        """The attempt is over. `resolved=False`: somebody may still write into its slots.

        Decode slots of a turn that was handed over stay with the decode engine until it has stored
        what is in them.
        """
        loan = self._loans.get(request_id)
        if loan is None:
            self._queue.take_back(request_id)
            self._place()
            return
        self._end(loan)
        if not (loan.handed_over and resolved):
            self._forget_new_keys(loan)
            (self._loans.take_back if resolved else self._loans.quarantine)(loan)
        self._place()

    # -- the index -----------------------------------------------------------------------------------

    async def stored(self, keys: Sequence[BlockKey]) -> tuple[BlockKey, ...]:
        """Those of `keys` that need not be written: they are stored. One that is only pending may fail."""
        return tuple(key for key in keys if self._index.is_stored(key))

    async def expect(self, keys: Sequence[BlockKey], weights_id: WeightsId) -> tuple[BlockKey, ...]:
        """These generated blocks are being persisted, but for those returned, which are stored already.

        A lookup that meets one of them waits for it.
        """
        if weights_id == self._weights.weights_id:
            self._index.expect(keys, weights_id)
        return await self.stored(keys)

    async def announce(
        self, stored: Sequence[AnnouncedBlock], failed: Sequence[BlockKey], weights_id: WeightsId
    ) -> None:
        """These persists have ended. Blocks of older weights are dropped."""
        if weights_id == self._weights.weights_id:
            for block in stored:
                self._index.announce(block.key, block.location, weights_id, block.parent)
            self._index.cancel(failed)
            self._keep_store({block.location.segment for block in stored})
        self._place()

    # -- weights -------------------------------------------------------------------------------------

    async def pause(self, deadline_s: float) -> None:
        """Place nothing more; return when no turn is placed and no persist is pending."""
        self._paused = True
        await self._until(lambda: not self._loans and not self._index.num_pending, deadline_s)

    async def resume(self) -> None:
        self._paused = False
        self._place()

    async def set_weights(self, weights: Weights) -> None:
        """Engines hold `weights` now: what was keyed with others is never hit again."""
        self._weights = weights
        self._index.drop_weights_except(weights.weights_id)
        self._loans.empty_dram()
        self._keep_store(())
        self._queue.refuse_all(self._stale)
        self._notify()

    async def weights(self) -> Weights:
        return self._weights

    async def figures(self) -> dict[str, float]:
        """What the scheduler holds right now, for metrics."""
        return {
            "queue_length": len(self._queue),
            "placed": len(self._loans),
            "indexed_blocks": len(self._index),
            "lost_blocks": self._lost_blocks,
            "stored_bytes": self._index.stored_bytes,
            "evicted_bytes": 0 if self._keeper is None else self._keeper.evicted_bytes,
            **self._loans.figures(),
        }

    def check(self) -> None:
        """Raise AssertionError unless books agree."""
        self._index.check()
        self._loans.check()
        self._reads.check()

    async def close(self) -> None:
        """Let go of the store. Idempotent."""
        if self._keeper is not None:
            await self._keeper.close()

    # -- inside --------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Place for as long as the first turn that waits for no block fits."""
        while not self._paused and self._place_one():
            pass
        self._notify()

    def _place_one(self) -> bool:
        """Whether the queue moved on."""
        for waiting in self._queue:
            if waiting.answer.done():  # its caller has gone
                self._queue.leave(waiting.request.request_id)
                return True
            if self._waits_for_block(waiting):
                continue
            placement = self._try(waiting)
            if placement is None:
                return False
            self._queue.leave(waiting.request.request_id)
            waiting.answer.set_result(placement)
            return True
        return False

    def _waits_for_block(self, waiting: WaitingTurn) -> bool:
        """Whether a block of its prompt is being made by another turn, and worth waiting for still.

        So the samples of a group, whose prompts are the same, compute that prompt once.
        """
        if waiting.pending_until_s is not None:
            return False
        if waiting.pending_key is not None and self._index.is_pending(waiting.pending_key):
            return True
        pending = self._index.match(self._hit_keys(waiting.request)).pending
        if not pending:
            if waiting.pending_key is not None:
                waiting.wait_for_no_block(self._clock())
            return False
        if waiting.wait_for_block(pending[0], self._clock()):
            deadline_s = self._config.pending_deadline_s
            asyncio.get_running_loop().call_later(deadline_s, self._wait_no_longer, waiting)
        return True

    def _wait_no_longer(self, waiting: WaitingTurn) -> None:
        """The first block that is still pending ends the hit."""
        waiting.wait_for_no_block(self._clock())
        self._place()

    def _try(self, waiting: WaitingTurn) -> Placement | None:
        request, now_s = waiting.request, self._clock()
        failed = request.failed_engines
        loads = self._loans.loads(EngineRole.PREFILL)
        prefill = choose_prefill(loads, self._load_limit_tokens, failed)
        loads = self._loans.loads(EngineRole.DECODE, room_for=request.context_tokens)
        decode = choose_decode(loads, failed)
        if prefill is None or decode is None:
            return None
        hit = self._hit(request)
        in_dram = self._loans.in_dram(prefill.node_id, (block.key for block in hit))
        plan = self._reads.plan(hit, prefill.node_id, decode.node_id, in_dram)
        num_decode = -(-request.prompt_tokens // self._block_tokens)
        slots = self._loans.reserve(plan, prefill.node_id, decode.node_id, num_decode)
        if slots is None:
            waiting.wait_for_slots(now_s)
            return None
        placement = Placement(
            request_id=request.request_id,
            prefill_engine=prefill.engine_id,
            prefill_node=prefill.node_id,
            decode_engine=decode.engine_id,
            decode_node=decode.node_id,
            read_plan=plan,
            hit_tokens=len(hit) * self._block_tokens,
            prefill_slots=slots[0],
            decode_slots=slots[1],
            weights_version=self._weights.version,
            weights_id=self._weights.weights_id,
            waited=waiting.waited(now_s),
        )
        loan = self._loans.lend(placement, request.context_tokens, request.keys[len(hit) :])
        self._index.expect(loan.new_keys, placement.weights_id)
        self._index.pin(loan.segments)
        self._reads.begin(placement)
        return placement

    def _hit(self, request: TurnRequest) -> tuple[IndexedBlock, ...]:
        """The stored prefix, at most all but one token; a block still pending ends it."""
        keys = self._hit_keys(request)
        match = self._index.match(keys)
        hit = []
        for key, block in zip(keys, match.stored, strict=False):
            if block.key != key:
                break
            hit.append(block)
        return tuple(hit)

    def _hit_keys(self, request: TurnRequest) -> tuple[BlockKey, ...]:
        """Keys of the blocks that may be hits: at least the prompt's last token is computed."""
        return request.keys[: (request.prompt_tokens - 1) // self._block_tokens]

    def _end(self, loan: Loan) -> None:
        """Neither engine works on the attempt any more."""
        if loan.prefilling:
            self._end_prefill(loan)
        self._loans.finish(loan)

    def _end_prefill(self, loan: Loan) -> None:
        self._loans.end_prefill(loan)
        self._reads.end(loan.placement.request_id, *ReadSide)
        self._index.unpin(loan.segments)

    def _forget_new_keys(self, loan: Loan) -> None:
        """Nobody will announce what became of the blocks the turn was to make."""
        self._index.cancel(loan.new_keys)
        loan.new_keys = ()

    def _keep_store(self, written: Collection[str]) -> None:
        """Blocks were announced in these segments, or weights have changed: there may be too much now."""
        if self._keeper is not None:
            self._keeper.make_room(written, self._weights.weights_id)

    @property
    def _block_tokens(self) -> int:
        assert self._layout is not None, "no node has registered"
        return self._layout.block_tokens

    def _refuse_stale(self, request: TurnRequest) -> None:
        if request.weights_version != self._weights.version:
            raise self._stale(request)

    def _stale(self, request: TurnRequest) -> RequestRefused:
        return RequestRefused(
            f"{request.request_id} names weights version {request.weights_version}, the engines hold "
            f"version {self._weights.version}"
        )

    async def _until(self, condition: Callable[[], bool], deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()

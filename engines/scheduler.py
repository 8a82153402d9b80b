"""The request scheduler: it alone knows the index, the slots of every node and the load of every engine.

A turn first waits for blocks of its prompt that others are making (engines.block_waits). Then it gets a
prefill and a decode engine (engines.scheduling.cluster_placement: groups that fetch in batches), and then,
all at once, decode slots for its whole prompt and prefill slots for what is read there. So nobody who holds
slots waits for more, and slots are given first come, first served on every node (engines.slot_queue), so
nobody starves. Which side reads what is decided in engines.read_planner and, while it is read, in
engines.read_mover; who has which slots is written down in engines.loans; this class says when. It never sees
token ids.

Every placement ends with `finish`, which takes back whatever was not given back before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from engines.absent_engines import AbsentEngines
from engines.block_waits import BlockWaits
from engines.config import SchedulerConfig
from engines.errors import OlderKVLost, PauseTimeout, PlacementTimeout, StaleWeights
from engines.expected_blocks import ExpectedBlocks
from engines.fetch_timer import FetchTimer
from engines.known_cluster import KnownCluster, open_known_cluster
from engines.loan import Loan
from engines.loans import Loans
from engines.never_waits import never_waits
from engines.peers import DecodePeer, NodePeer, PrefillPeer
from engines.prefetcher import Prefetcher
from engines.read_messages import LostBlock, MovedBlock, MoveOrder, ReadReport
from engines.read_planner import ReadPlanner
from engines.roster import Roster
from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.engine_choice import EnginePair
from engines.scheduling.estimate import PromptWork
from engines.scheduling.prefill_times import PrefillTimes
from engines.scheduling.queued_turn import QueuedTurn
from engines.slot_queue import SlotQueue
from engines.slot_reclaimer import SlotReclaimer
from engines.store_keeper import StoreKeeper
from engines.turn_queue import TurnQueue, WaitingTurn
from engines.types import (
    AnnouncedBlock,
    ClusterSpeeds,
    EngineId,
    EngineInfo,
    NodeId,
    Placement,
    ReadSide,
    RequestId,
    SlotId,
    SlotRelease,
    TurnRequest,
    Weights,
)
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout
from kvstore.prefix_index import PrefixIndex


class Scheduler:
    """One per job, on one event loop."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        prefill_load_limit_tokens: int,
        weights: Weights,
        dram_bytes: int = 0,
        speeds: ClusterSpeeds | None = None,
        keeper: StoreKeeper | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`dram_bytes` of each node's memory may keep blocks. Without a `keeper` nothing is evicted.

        Where `speeds` does not tell what a storage NIC carries no read queue counts as long (alpha is
        infinite); where it does not tell a forward's time every hit is loaded.
        """
        self._config = config
        self._load_limit_tokens = prefill_load_limit_tokens
        self._weights = weights
        self._dram_bytes = dram_bytes
        self._speeds = speeds or ClusterSpeeds()
        self._times = PrefillTimes(config.estimate_coefficients, self._speeds.prefill_forward)
        self._keeper = keeper
        self._clock = clock
        self._index = PrefixIndex() if keeper is None else keeper.index
        self._expected = ExpectedBlocks(self._index)
        self._loans = Loans()
        self._roster = Roster(self._loans)
        self._absent = AbsentEngines(self._roster, self._loans)
        self._queue = TurnQueue()
        self._block_waits = BlockWaits(
            self._index,
            deadline_s=config.pending_deadline_s,
            clock=clock,
            on_ready=self._queue_for_engines,
            on_change=self._go_on,
        )
        self._fetches = FetchTimer(
            config.fetch_period_s, clock=clock, wanted=self._may_fetch, fetch=self._fetch
        )
        self._slot_queue = SlotQueue()
        self._ahead = Prefetcher(config, self._loans, self._index, self._slot_queue, self._go_on)
        self._reclaimer = SlotReclaimer(config.heartbeat_deadline_s, self.resolve)
        self._cluster: KnownCluster | None = None
        self._older: set[WeightsId] = set()
        """Weights that running contexts keep KV of."""
        self._asked_for: set[WeightsId] = set()
        """Weights that turns named since the last update."""
        self._paused = False
        self._changed = asyncio.Event()
        self._reserves: dict[EngineId, tuple[SlotId, ...]] = {}
        self._lost_blocks = 0
        self._buffer_waits = 0
        self._buffer_wait_s = 0.0

    # -- the cluster ---------------------------------------------------------------------------------

    async def connect_nodes(self, nodes: Mapping[NodeId, NodePeer]) -> None:
        """The nodes can be told to read ahead from now on."""
        self._ahead.connect(nodes)

    async def connect_engines(
        self,
        nodes: Mapping[NodeId, NodePeer],
        prefill_engines: Mapping[EngineId, PrefillPeer],
        decode_engines: Mapping[EngineId, DecodePeer],
    ) -> None:
        """All of these can be asked from now on whether they have let go of a turn that broke."""
        self._reclaimer.connect(nodes, prefill_engines, decode_engines)

    async def register_node(self, node_id: NodeId, num_slots: int, layout: BlockLayout) -> None:
        """A node's staging memory is at the scheduler's disposal. All nodes have blocks of one layout.

        One that is known has begun anew: its slots, and whoever had some, begin anew as well. Its engines get
        turns again once they are registered again.
        """
        if self._cluster is None:
            self._cluster = open_known_cluster(
                self._config,
                self._speeds,
                layout,
                prefill_load_limit_tokens=self._load_limit_tokens,
                loans=self._loans,
                slot_queue=self._slot_queue,
            )
        max_dram_slots = self._dram_bytes // layout.slot_bytes
        if self._roster.has_node(node_id):
            self._forget_node(node_id, num_slots, max_dram_slots)
        else:
            self._loans.add_node(node_id, num_slots, max_dram_slots)
        self._roster.add_node(node_id)
        self._cluster.placement.add_node(node_id)
        self._cluster.reads.add_node(node_id)

    async def reserve_slots(self, engine_id: EngineId, node_id: NodeId, num_slots: int) -> tuple[SlotId, ...]:
        """Slots that are the engine's own for persisting, never lent to prompts; the same each time."""
        if engine_id not in self._reserves:
            self._reserves[engine_id] = self._loans.node(node_id).reserve(num_slots)
        return self._reserves[engine_id]

    async def register_engine(self, info: EngineInfo) -> None:
        """An engine is ready. One that is known has begun anew, without what it had taken over."""
        if self._roster.has_engine(info.engine_id):
            self._forget_engine(info.engine_id)
        self._roster.add(info)
        if not self._absent.includes(info):
            self._placement.add_engine(info)
        self._go_on()

    async def set_absent(self, absent: frozenset[str]) -> None:
        """These engines and nodes do not answer now, and no others.

        An absent engine, or one of an absent node, gets no turns until it is back, and nobody waits for the
        blocks it was to make. Turns that wait for slots with it get another. Placed turns are their clients'
        to end; what was handed over to a decode engine stays with it, as it gives it back itself should it
        return. Where over half of a node is set aside by then, its engines stay out.
        """
        gone, back = self._absent.set(absent)
        self._ahead.lose(absent)
        for engine_id in gone:
            self._take_out(engine_id)
        for engine_id in back:
            self._placement.add_engine(self._roster.engine(engine_id))
        self._go_on()

    async def absent(self, seen: int, wait_s: float) -> tuple[int, frozenset[str]]:
        """All absent engines and nodes, and the number of this news; waits for others than number `seen`."""
        return await self._absent.news(seen, wait_s)

    # -- the life of a turn --------------------------------------------------------------------------

    async def submit(self, request: TurnRequest) -> Placement:
        """Wait for a place. Raises RequestRefused or PlacementTimeout, nothing then reserved."""
        self._roster.refuse_misfits(request, self._block_tokens)
        self._refuse_stale(request)
        self._asked_for.add(request.kv_weights_id or self._weights.weights_id)
        if request.kv_weights_id is not None:
            self._older.add(request.kv_weights_id)
        # At least the prompt's last token is computed.
        hit_keys = request.keys[: (request.prompt_tokens - 1) // self._block_tokens]
        waiting = self._queue.join(request, hit_keys, self._clock())
        try:
            if not self._block_waits.begins(waiting):
                self._queue_for_engines(waiting)
            self._go_on()
            async with asyncio.timeout(request.deadline_s):
                return await waiting.answer
        except TimeoutError:
            if waiting.answer.done() and not waiting.answer.cancelled():
                return waiting.answer.result()  # placed in the last moment
            raise PlacementTimeout(
                f"{request.request_id} found no place within {request.deadline_s:.1f} s; "
                f"{len(self._queue)} turns wait, {len(self._loans)} are placed{self._absent.told()}"
            ) from None
        finally:
            if self._queue.get(request.request_id) is waiting:
                self._leave(waiting)
                self._go_on()

    @never_waits
    async def report_reads(self, report: ReadReport) -> tuple[MoveOrder, ...]:
        """What a node has read, and has not begun; what of that its turns' other sides read instead.

        It corrects the read queues, which fall back on what placed turns have to read where no report comes.
        """
        now_s = self._clock()
        self._reads.report(report)
        self._ahead.reported(report.node_id)
        orders = self._cluster_parts.mover.orders(report, now_s)
        self._go_on()
        return orders

    @never_waits
    async def prefilled(
        self, request_id: RequestId, moved: Sequence[MovedBlock] = (), forward_times: Sequence[float] = ()
    ) -> None:
        """The prefill engine is done: its slots and its share of load come back.

        `moved` are the blocks of the hit that were read on another side than the placement says;
        `forward_times` the coefficients by which the engine estimates its forwards now.
        """
        loan = self._loans.get(request_id)
        if loan is None or not loan.prefilling:
            return
        self._times.learn(loan.placement.prefill_engine, forward_times)
        self._end_prefill(loan, moved)
        keep = loan.placement.weights_id == self._weights.weights_id
        self._loans.hand_over(loan, moved, keep=keep)
        self._go_on()

    @never_waits
    async def release_slots(self, request_id: RequestId, slots: Sequence[SlotId]) -> None:
        """The decode node needs these slots of the request's no more."""
        loan = self._loans.get(request_id)
        if loan is not None:
            self._loans.release(loan, loan.placement.decode_node, slots)
            self._go_on()

    @never_waits
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
            self._loans.take_back(loan, lost)
            for node_id in (loan.placement.prefill_node, loan.placement.decode_node):
                self._reads.set_late(node_id, self._loans.node(node_id).num_late)
            self._forget_new_keys(loan)
        # Whoever waits for slots may need fewer now.
        self._go_on(self._slot_queue.nodes())

    @never_waits
    async def settled(self, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        """Late reads have ended: nobody writes into these slots of the node any more."""
        self._loans.settled(node_id, slots)
        self._reads.set_late(node_id, self._loans.node(node_id).num_late)
        self._go_on()

    @never_waits
    async def finish(
        self, request_id: RequestId, *, resolved: bool = True, safe_nodes: frozenset[NodeId] = frozenset()
    ) -> None:
        """The attempt is over. `resolved=False`: somebody may still write into its slots, but for those of
        `safe_nodes`; they come back once he has let go (engines.slot_reclaimer).

        Decode slots of a turn that was handed over stay with the decode engine until it has stored
        what is in them.
        """
        loan = self._loans.get(request_id)
        if loan is None:
            self._queue.take_back(request_id)
            return
        self._end(loan)
        is_out = loan.placement.decode_engine in self._absent.engines
        if not (loan.handed_over and (resolved or is_out)):
            if resolved:
                self._loans.take_back(loan)
            else:
                doubted = self._loans.quarantine(loan, safe_nodes)
                self._reclaimer.begin(loan.placement, doubted)
            self._forget_new_keys(loan)
        elif is_out:
            self._forget_new_keys(loan)
        self._go_on()

    async def forget_client(self, name: str, but: str) -> None:
        """Of this client only the process `but` is left: end what the others had asked for."""
        for waiting in self._queue.of_client(name, but):
            self._queue.take_back(waiting.request_id)
        for loan in self._loans.of_client(name, but):
            if not loan.finished:
                await self.finish(loan.placement.request_id, resolved=False)

    def resolve(self, request_id: RequestId, node_id: NodeId) -> None:
        """Nobody touches slots of the node for this attempt any more, which had ended unresolved."""
        self._loans.trust(request_id, node_id)
        self._go_on()

    # -- contexts whose agents wait ------------------------------------------------------------------

    async def begin_wait(self, request_id: RequestId, keys: Sequence[BlockKey], weights_version: int) -> None:
        """This turn's agent waits for a tool; a context that begins with these blocks is read ahead."""
        if not self._paused and weights_version == self._weights.version and self._cluster is not None:
            self._ahead.begin(request_id, keys, self._placement)
            self._go_on()

    async def end_wait(self, request_id: RequestId) -> None:
        """The agent goes on, or has ended. Nothing happens if it was not known to wait."""
        self._ahead.end(request_id)

    # -- the index -----------------------------------------------------------------------------------

    @never_waits
    async def stored(self, keys: Sequence[BlockKey]) -> tuple[BlockKey, ...]:
        """Those of `keys` that need not be written: they are stored. One that is only pending may fail."""
        return tuple(key for key in keys if self._index.is_stored(key))

    @never_waits
    async def expect(
        self, keys: Sequence[BlockKey], weights_id: WeightsId, request_id: RequestId | None = None
    ) -> tuple[BlockKey, ...]:
        """These generated blocks are being persisted, but for those returned, which are stored already.

        A lookup that meets one of them waits for it, unless the engine that decodes `request_id` is absent
        or the attempt is over.
        """
        loan = None if request_id is None else self._loans.get(request_id)
        maker = None if loan is None else loan.placement.decode_engine
        is_over = request_id is not None and loan is None
        if self._is_named(weights_id) and maker not in self._absent.engines and not is_over:
            self._expected.expect(keys, weights_id, maker)
        return await self.stored(keys)

    @never_waits
    async def announce(
        self,
        stored: Sequence[AnnouncedBlock],
        failed: Sequence[BlockKey],
        weights_id: WeightsId,
        released: SlotRelease | None = None,
    ) -> None:
        """These persists have ended, and so does the need for slots. Blocks of older weights are dropped."""
        if self._is_named(weights_id):
            self._expected.stored(stored, weights_id)
            self._expected.failed(failed)
            self._keep_store({block.location.segment for block in stored})
            self._block_waits.wake(block.key for block in stored)
            self._block_waits.wake(failed)
        loan = None if released is None else self._loans.get(released.request_id)
        if released is not None and loan is not None:
            self._loans.release(loan, loan.placement.decode_node, released.slots)
        self._go_on()

    # -- weights -------------------------------------------------------------------------------------

    async def pause(self, deadline_s: float) -> None:
        """Place and read ahead nothing more; return when no turn is placed and no persist is pending.

        What an absent decode engine never gave back is not waited for. Raises PauseTimeout; nothing is placed
        after that either.
        """
        self._paused = True
        self._ahead.clear()
        try:
            await self._until(self._is_quiet, deadline_s)
        except TimeoutError:
            raise PauseTimeout(
                f"{self._num_at_work()} turns still run and {self._index.num_pending} blocks are being made "
                f"after {deadline_s:.0f} s"
            ) from None

    async def resume(self) -> None:
        self._paused = False
        self._go_on(self._slot_queue.nodes())

    async def set_weights(self, weights: Weights, *, keep_kv: bool = False) -> None:
        """Engines hold `weights` now: what was keyed with others is never hit again.

        With `keep_kv` contexts that began under others keep what those made: it stays for as long as somebody
        has asked for it since the update before. The same weights once more change nothing.
        """
        if weights == self._weights:
            return
        self._older = (self._older | {self._weights.weights_id}) & self._asked_for if keep_kv else set()
        self._asked_for = set()
        self._weights = weights
        self._expected.drop_weights_except(weights.weights_id, *self._older)
        self._ahead.clear()
        self._loans.empty_dram()
        self._keep_store(())
        self._queue.refuse_all(self._stale)
        self._go_on()

    @never_waits
    async def weights(self) -> Weights:
        return self._weights

    async def figures(self) -> dict[str, float]:
        """What the scheduler holds right now, for metrics."""
        for_prefill, for_decode = (0, 0) if self._cluster is None else self._placement.num_waiting
        return {
            "queue_length": len(self._queue),
            "prefill_queue_length": for_prefill,
            "decode_queue_length": for_decode,
            "slot_queue_length": len(self._slot_queue),
            "buffer_waits": self._buffer_waits,
            "buffer_wait_s": self._buffer_wait_s,
            "placed": len(self._loans),
            "absent_engines": len(self._absent.engines),
            "indexed_blocks": len(self._index),
            "lost_blocks": self._lost_blocks,
            "stored_bytes": self._index.stored_bytes,
            "evicted_bytes": 0 if self._keeper is None else self._keeper.evicted_bytes,
            **self._ahead.figures(),
            **self._loans.figures(),
            **({} if self._cluster is None else self._reads.figures()),
        }

    def check(self) -> None:
        """Raise AssertionError unless books agree."""
        self._index.check()
        self._loans.check()
        if self._cluster is not None:
            self._placement.check()

    async def close(self) -> None:
        """Let go of the store and the decision log. Idempotent."""
        self._ahead.close()
        self._reclaimer.close()
        if self._cluster is not None:
            self._cluster.close()
        if self._keeper is not None:
            await self._keeper.close()

    # -- inside --------------------------------------------------------------------------------------

    def _go_on(self, nodes: Iterable[NodeId] = ()) -> None:
        """Something has changed, or slots of `nodes` may do now: whoever can, moves on."""
        if not self._paused:
            self._grant_slots(nodes)
            self._fetches.soon()
            if self._cluster is not None:
                self._ahead.go_on(self._placement)
        self._changed.set()

    def _may_fetch(self) -> bool:
        return not self._paused and self._cluster is not None and any(self._placement.num_waiting)

    def _fetch(self, now_s: float) -> bool:
        """Every group fetches once; whether anybody got an engine."""
        before = self._placement.num_waiting
        pairs = self._placement.fetch_once(now_s)
        progress = self._placement.num_waiting != before
        for pair in pairs:
            request_id = pair.turn.request_id
            waiting = self._queue.get(request_id)
            if waiting is None or waiting.answer.done():
                self._placement.withdraw(request_id)
                continue
            waiting.pair = pair
            nodes = (pair.prefill.node_id, pair.decode.node_id)
            self._slot_queue.push(request_id, nodes)
            self._grant_slots(nodes)
            if request_id in self._slot_queue:
                waiting.wait_for_slots(now_s)
        return progress

    def _grant_slots(self, nodes: Iterable[NodeId]) -> None:
        """Place whoever is first in line on these nodes and where slots came back, as far as slots go."""
        to_look_at = self._loans.take_freed().union(nodes)
        while to_look_at:
            request_id = self._slot_queue.first(to_look_at.pop())
            waiting = None if request_id is None else self._queue.get(request_id)
            if waiting is None:
                continue
            if waiting.answer.done() or self._gives_engines_back(waiting) or self._grant(waiting):
                to_look_at.update(self._slot_queue.leave(waiting.request_id))

    def _gives_engines_back(self, waiting: WaitingTurn) -> bool:
        """Whether a block of the turn's prompt is being made by now: it waits for that without engines."""
        if not self._block_waits.begins(waiting):
            return False
        waiting.pair = None
        self._placement.withdraw(waiting.request_id)
        return True

    def _queue_for_engines(self, waiting: WaitingTurn) -> None:
        """It waits for a prefill engine now, in the place that its time of arrival gives it."""
        waiting.pair = None
        request, hit_tokens = waiting.request, len(waiting.hit) * self._block_tokens
        memory_node, num_kept = self._ahead.best_memory(waiting.hit.keys)
        self._placement.submit(
            QueuedTurn(
                request.request_id,
                arrived_s=waiting.since_s,
                prompt_tokens=request.prompt_tokens,
                hit_tokens=hit_tokens,
                output_tokens=request.max_output_tokens,
                estimate_s=self._times.predict_s(_work(request, hit_tokens)),
                remaining_tokens=request.remaining_tokens or 0,
                memory_node=memory_node,
                memory_tokens=num_kept * self._block_tokens,
                trajectory_group=request.group_id,
                failed_engines=request.failed_engines,
            )
        )

    def _grant(self, waiting: WaitingTurn) -> bool:
        """Whether the turn got its slots, and so its place; or that it gets none, as its KV is lost."""
        pair, now_s = waiting.pair, self._clock()
        assert pair is not None, waiting.request_id
        request, hit = waiting.request, waiting.hit
        if len(hit) < request.num_kept_blocks:
            waiting.answer.set_exception(OlderKVLost(len(hit)))
            return True
        prefill_node, decode_node = pair.prefill.node_id, pair.decode.node_id
        in_dram = self._loans.in_dram(prefill_node, hit.keys)
        if self._config.load_only_if_faster and not in_dram and not request.num_kept_blocks:
            hit = hit[: self._num_worth_loading(waiting, pair, now_s)]
        plan = self._reads.plan(pair, hit, in_dram, now_s)
        num_decode = -(-request.prompt_tokens // self._block_tokens)
        slots = self._loans.reserve(plan, prefill_node, decode_node, num_decode)
        if slots is None:
            return False
        placement = Placement(
            request_id=request.request_id,
            prefill_engine=pair.prefill.engine_id,
            prefill_node=prefill_node,
            decode_engine=pair.decode.engine_id,
            decode_node=decode_node,
            read_plan=plan,
            hit_tokens=len(hit) * self._block_tokens,
            prefill_slots=slots[0],
            decode_slots=slots[1],
            weights_version=self._weights.version,
            weights_id=self._weights.weights_id,
            waited=waiting.waited(now_s),
            kv_weights_id=request.kv_weights_id,
        )
        self._buffer_waits += placement.waited.buffer_wait > 0
        self._buffer_wait_s += placement.waited.buffer_wait
        loan = self._loans.lend(placement, request.keys[len(hit) :], request.client)
        self._expected.expect(loan.new_keys, placement.named_weights_id)
        self._index.pin(loan.segments)
        self._reads.begin(pair, plan, now_s)
        work = _work(request, placement.hit_tokens)
        self._times.begin(placement.prefill_engine, request.request_id, work)
        self._queue.leave(request.request_id)
        waiting.answer.set_result(placement)
        return True

    def _num_worth_loading(self, waiting: WaitingTurn, pair: EnginePair, now_s: float) -> int:
        """Blocks of the hit to load, where both times are known: the others are computed sooner."""
        hit = waiting.hit
        if not len(hit) or not self._times.knows or not self._reads.knows_rates:
            return len(hit)
        return self._times.blocks_to_load(
            pair.prefill.engine_id,
            len(hit),
            waiting.request.prompt_tokens,
            self._reads.sides(pair, hit.record_bytes, now_s),
            block_bytes=hit.record_bytes,
            block_tokens=self._block_tokens,
        )

    def _leave(self, waiting: WaitingTurn) -> None:
        """It waits no more, wherever it is."""
        self._queue.leave(waiting.request_id)
        self._block_waits.end(waiting)
        nodes = self._slot_queue.leave(waiting.request_id)
        self._placement.withdraw(waiting.request_id)
        if not self._paused:
            self._grant_slots(nodes)

    def _end(self, loan: Loan) -> None:
        """Neither engine works on the attempt any more."""
        if loan.prefilling:
            self._end_prefill(loan)
        self._placement.finished(loan.placement.request_id)
        self._loans.finish(loan)

    def _end_prefill(self, loan: Loan, moved: Sequence[MovedBlock] = ()) -> None:
        loan.prefilling = False
        self._placement.prefilled(loan.placement.request_id)
        self._times.end(loan.placement.prefill_engine, loan.placement.request_id)
        self._reads.end(loan.placement.request_id, moved)
        self._index.unpin(loan.segments)

    def _take_out(self, engine_id: EngineId) -> None:
        """The engine is absent."""
        for request_id in self._placement.remove_engine(engine_id):
            waiting = self._queue.get(request_id)
            if waiting is not None:
                self._slot_queue.leave(request_id)
                self._queue_for_engines(waiting)
        self._block_waits.wake(self._expected.forget_engine(engine_id))
        for loan in self._loans.with_decode_engine(engine_id):
            if loan.finished:
                self._forget_new_keys(loan)

    def _forget_engine(self, engine_id: EngineId) -> None:
        """The engine has begun anew: whatever it had been given it does not have any more."""
        if engine_id not in self._absent.engines:
            self._take_out(engine_id)
        for loan in self._loans.with_decode_engine(engine_id):
            if loan.handed_over and loan.finished:
                self._loans.take_back(loan)
                self._forget_new_keys(loan)
            loan.handed_over = False  # its client ends it as a turn that broke

    def _forget_node(self, node_id: NodeId, num_slots: int, max_dram_slots: int) -> None:
        """The node has begun anew: nobody has anything of its memory, nor does an engine of it serve."""
        for engine_id in self._roster.among((node_id,)):
            self._forget_engine(engine_id)
            self._reserves.pop(engine_id, None)
        self._absent.leave(self._roster.among((node_id,)))
        self._ahead.forget(node_id)
        for loan in self._loans.forget_node(node_id, num_slots, max_dram_slots):
            if loan.prefilling:
                self._end_prefill(loan)

    def _is_quiet(self) -> bool:
        """Whether nobody works on a turn, persists a block or reads ahead."""
        return not self._num_at_work() and not self._index.num_pending and self._ahead.is_idle

    def _num_at_work(self) -> int:
        """Placed turns, but for those that only an absent decode engine still holds."""
        left = (
            loan for engine_id in self._absent.engines for loan in self._loans.with_decode_engine(engine_id)
        )
        return len(self._loans) - sum(loan.finished for loan in left)

    def _forget_new_keys(self, loan: Loan) -> None:
        """Nobody will announce what became of the blocks the turn was to make."""
        keys, loan.new_keys = loan.new_keys, ()
        self._expected.forget(keys)
        self._block_waits.wake(keys)

    def _is_named(self, weights_id: WeightsId) -> bool:
        """Whether anybody may still ask for blocks of these weights."""
        return weights_id == self._weights.weights_id or weights_id in self._older

    def _keep_store(self, written: Collection[str]) -> None:
        """Blocks were announced in these segments, or weights have changed: there may be too much now."""
        if self._keeper is not None:
            self._keeper.make_room(written, self._weights.weights_id)

    @property
    def _cluster_parts(self) -> KnownCluster:
        assert self._cluster is not None, "no node has registered"
        return self._cluster

    @property
    def _placement(self) -> ClusterPlacement:
        return self._cluster_parts.placement

    @property
    def _reads(self) -> ReadPlanner:
        return self._cluster_parts.reads

    @property
    def _block_tokens(self) -> int:
        return self._cluster_parts.layout.block_tokens

    def _refuse_stale(self, request: TurnRequest) -> None:
        if request.weights_version != self._weights.version:
            raise self._stale(request)

    def _stale(self, request: TurnRequest) -> StaleWeights:
        return StaleWeights(
            f"{request.request_id} names weights version {request.weights_version}, the engines hold "
            f"version {self._weights.version}"
        )

    async def _until(self, condition: Callable[[], bool], deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def _work(request: TurnRequest, hit_tokens: int) -> PromptWork:
    """What its prefill engine computes."""
    return PromptWork.of(hit_tokens, request.prompt_tokens - hit_tokens)

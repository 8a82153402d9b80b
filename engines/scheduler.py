"""The request scheduler: it alone knows the index, the slots of every node and the load of every engine.

A turn waits until it can have everything at once: a prefill engine, a decode engine, decode slots for its
whole prompt and prefill slots for what is read there. So nobody holds while waiting, and the queue is FIFO,
so nobody starves. Which engine and which side is decided in engines.scheduling; this class keeps the books.
It never sees token ids.

Every placement ends with `finish`, which takes back whatever was not given back before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from engines.config import SchedulerConfig
from engines.errors import PlacementTimeout, RequestRefused
from engines.scheduling import read_plan
from engines.scheduling.placement import EngineLoad, choose_decode, choose_prefill
from engines.types import (
    AnnouncedBlock,
    EngineId,
    EngineInfo,
    EngineRole,
    NodeId,
    PhaseSeconds,
    Placement,
    ReadSide,
    RequestId,
    SlotId,
    TurnRequest,
    Weights,
)
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout
from kvstore.prefix_index import IndexedBlock, PrefixIndex
from kvstore.slots import SlotPool


@dataclass(slots=True)
class _Engine:
    info: EngineInfo
    num_requests: int = 0
    load_tokens: int = 0

    def load(self) -> EngineLoad:
        return EngineLoad(self.info.engine_id, self.info.node_id, self.num_requests, self.load_tokens)


@dataclass(slots=True)
class _Waiting:
    request: TurnRequest
    answer: asyncio.Future[Placement]
    since_s: float
    pending_key: BlockKey | None = None
    """A block of its prompt that somebody is making right now, and that it waits for."""
    pending_since_s: float | None = None
    pending_until_s: float | None = None
    buffer_since_s: float | None = None

    def waited(self, now_s: float) -> PhaseSeconds:
        """Where the time since submission went, if it is placed now."""
        persist_wait_s = buffer_wait_s = 0.0
        if self.pending_since_s is not None and self.pending_until_s is not None:
            persist_wait_s = self.pending_until_s - self.pending_since_s
        if self.buffer_since_s is not None:
            buffer_wait_s = now_s - self.buffer_since_s
        return PhaseSeconds(
            queue=now_s - self.since_s - persist_wait_s - buffer_wait_s,
            buffer_wait=buffer_wait_s,
            persist_wait=persist_wait_s,
        )


@dataclass(slots=True)
class _Placed:
    placement: Placement
    tokens: int
    new_keys: tuple[BlockKey, ...]
    """Prompt blocks it makes; once it is handed over, the decode engine announces what became of them."""
    prefilling: bool = True
    handed_over: bool = False
    """The decode engine has taken the turn over: it alone gives the decode slots back."""
    finished: bool = False
    slots: dict[NodeId, set[SlotId]] = field(default_factory=dict)


class Scheduler:
    """One per job, on one event loop."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        prefill_load_limit_tokens: int,
        weights: Weights,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._load_limit_tokens = prefill_load_limit_tokens
        self._weights = weights
        self._clock = clock
        self._index = PrefixIndex()
        self._pools: dict[NodeId, SlotPool] = {}
        self._lendable_slots: dict[NodeId, int] = {}
        self._layout: BlockLayout | None = None
        self._engines: dict[EngineId, _Engine] = {}
        self._answers: dict[RequestId, asyncio.Future[Placement]] = {}
        self._queue: deque[_Waiting] = deque()
        self._placed: dict[RequestId, _Placed] = {}
        self._paused = False
        self._changed = asyncio.Event()
        self._lost_blocks = 0

    # -- the cluster ---------------------------------------------------------------------------------

    async def register_node(self, node_id: NodeId, num_slots: int, layout: BlockLayout) -> None:
        """A node's staging memory is at the scheduler's disposal."""
        self._pools[node_id] = SlotPool(num_slots)
        self._lendable_slots[node_id] = num_slots
        self._layout = layout

    async def register_engine(self, info: EngineInfo, reserve_slots: int) -> tuple[SlotId, ...]:
        """An engine is ready; the slots returned are its own for persisting, never lent to prompts."""
        self._engines[info.engine_id] = _Engine(info)
        self._lendable_slots[info.node_id] -= reserve_slots
        return tuple(SlotId(slot) for slot in self._pools[info.node_id].take(reserve_slots))

    # -- the life of a turn --------------------------------------------------------------------------

    async def submit(self, request: TurnRequest) -> Placement:
        """Wait for a place. Raises RequestRefused or PlacementTimeout, nothing then reserved."""
        self._refuse_misfits(request)
        answer: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self._answers[request.request_id] = answer
        try:
            self._refuse_stale(request)
            self._queue.append(_Waiting(request, answer, self._clock()))
            self._place()
            async with asyncio.timeout(request.deadline_s):
                return await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled():
                return answer.result()  # placed in the last moment
            raise PlacementTimeout(
                f"{request.request_id} found no place within {request.deadline_s:.1f} s; "
                f"{len(self._queue)} turns wait, {len(self._placed)} are placed"
            ) from None
        finally:
            self._forget(request.request_id)
            self._place()

    async def prefilled(self, request_id: RequestId) -> None:
        """The prefill engine is done: its slots and its share of load come back."""
        placed = self._placed.get(request_id)
        if placed is None or not placed.prefilling:
            return
        placed.handed_over = True
        self._end_prefill(placed)
        placement = placed.placement
        self._give_back(placed, placement.prefill_node, placement.prefill_slots)
        self._place()

    async def release_slots(self, request_id: RequestId, slots: Sequence[SlotId]) -> None:
        """The decode node needs these slots of the request's no more."""
        placed = self._placed.get(request_id)
        if placed is not None:
            self._give_back(placed, placed.placement.decode_node, slots)
            self._drop_if_over(placed)
            self._place()

    async def finish(self, request_id: RequestId, *, resolved: bool = True) -> None:
        """The attempt is over. `resolved=False`: somebody may still write into its slots.

        Decode slots of a turn that was handed over stay with the decode engine until it has stored
        what is in them.
        """
        placed = self._placed.get(request_id)
        if placed is None:
            self._take_back(request_id)
            return
        if placed.prefilling:
            self._end_prefill(placed)
        if not placed.finished:
            placed.finished = True
            self._unload(placed.placement.decode_engine, placed.tokens)
        if not (placed.handed_over and resolved):
            self._index.cancel(placed.new_keys)
            placed.new_keys = ()
            for node_id, slots in placed.slots.items():
                pool = self._pools[node_id]
                (pool.give_back if resolved else pool.quarantine)(slots)
            placed.slots.clear()
        self._drop_if_over(placed)
        self._place()

    # -- the index -----------------------------------------------------------------------------------

    async def expect(self, keys: Sequence[BlockKey], weights_id: WeightsId) -> None:
        """These generated blocks are being persisted; a lookup that meets one waits for it."""
        if weights_id == self._weights.weights_id:
            self._index.expect(keys, weights_id)

    async def announce(
        self, stored: Sequence[AnnouncedBlock], failed: Sequence[BlockKey], weights_id: WeightsId
    ) -> None:
        """These persists have ended. Blocks of older weights are dropped."""
        if weights_id == self._weights.weights_id:
            for block in stored:
                self._index.announce(block.key, block.location, weights_id)
            self._index.cancel(failed)
        self._place()

    async def discard(self, keys: Sequence[BlockKey]) -> None:
        """These blocks could not be read: they are hits no more."""
        self._lost_blocks += sum(self._index.discard(key) for key in keys)
        self._place()

    # -- weights -------------------------------------------------------------------------------------

    async def pause(self, deadline_s: float) -> None:
        """Place nothing more; return when no turn is placed and no persist is pending."""
        self._paused = True
        await self._until(lambda: not self._placed and not self._index.num_pending, deadline_s)

    async def resume(self) -> None:
        self._paused = False
        self._place()

    async def set_weights(self, weights: Weights) -> None:
        """Engines hold `weights` now: what was keyed with others is never hit again."""
        self._weights = weights
        self._index.drop_weights_except(weights.weights_id)
        for waiting in self._queue:
            if not waiting.answer.done():
                waiting.answer.set_exception(self._stale(waiting.request))
        self._queue.clear()
        self._notify()

    async def weights(self) -> Weights:
        return self._weights

    async def figures(self) -> dict[str, float]:
        """What the scheduler holds right now, for metrics."""
        return {
            "queue_length": len(self._queue),
            "placed": len(self._placed),
            "indexed_blocks": len(self._index),
            "lost_blocks": self._lost_blocks,
            "free_slots": sum(pool.num_free for pool in self._pools.values()),
            "quarantined_slots": sum(pool.num_quarantined for pool in self._pools.values()),
        }

    def check(self) -> None:
        """Raise AssertionError unless books agree."""
        self._index.check()
        for pool in self._pools.values():
            pool.check()
        for engine in self._engines.values():
            assert (engine.num_requests == 0) == (engine.load_tokens == 0), engine

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
                self._queue.remove(waiting)
                return True
            if self._waits_for_block(waiting):
                continue
            placement = self._try(waiting)
            if placement is None:
                return False
            self._queue.remove(waiting)
            waiting.answer.set_result(placement)
            return True
        return False

    def _waits_for_block(self, waiting: _Waiting) -> bool:
        """Whether a block of its prompt is being made by another turn, and worth waiting for still.

        So the samples of a group, whose prompts are the same, compute that prompt once.
        """
        if waiting.pending_until_s is not None:
            return False
        if waiting.pending_key is not None and self._index.is_pending(waiting.pending_key):
            return True
        pending = self._index.match(self._hit_keys(waiting.request)).pending
        if not pending:
            if waiting.pending_since_s is not None:
                waiting.pending_until_s = self._clock()
            return False
        if waiting.pending_since_s is None:
            waiting.pending_since_s = self._clock()
            waiting.buffer_since_s = None  # an instant is charged to one phase
            deadline_s = self._config.pending_deadline_s
            asyncio.get_running_loop().call_later(deadline_s, self._wait_no_longer, waiting)
        waiting.pending_key = pending[0]
        return True

    def _wait_no_longer(self, waiting: _Waiting) -> None:
        """The first block that is still pending ends the hit."""
        if waiting.pending_until_s is None:
            waiting.pending_until_s = self._clock()
            self._place()

    def _try(self, waiting: _Waiting) -> Placement | None:
        request, now_s = waiting.request, self._clock()
        failed = request.failed_engines
        prefill = choose_prefill(self._loads(EngineRole.PREFILL), self._load_limit_tokens, failed)
        decode = choose_decode(self._loads(EngineRole.DECODE, room_for=_context(request)), failed)
        if prefill is None or decode is None:
            return None
        hit = self._hit(request)
        plan = read_plan.basic(hit)
        num_prefill = read_plan.num_blocks_on(ReadSide.PREFILL, plan)
        slots = self._reserve(request, prefill.node_id, num_prefill, decode.node_id)
        if slots is None:
            if waiting.buffer_since_s is None:
                waiting.buffer_since_s = now_s
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
        self._keep(placement, _context(request), request.keys[len(hit) :])
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

    def _reserve(
        self, request: TurnRequest, prefill_node: NodeId, num_prefill: int, decode_node: NodeId
    ) -> tuple[tuple[SlotId, ...], tuple[SlotId, ...]] | None:
        """All slots of both sides, or none."""
        num_decode = -(-request.prompt_tokens // self._block_tokens)
        wanted = {prefill_node: 0, decode_node: 0}
        wanted[prefill_node] += num_prefill
        wanted[decode_node] += num_decode
        if any(self._pools[node].num_free < count for node, count in wanted.items()):
            return None
        prefill = self._pools[prefill_node].take(num_prefill)
        decode = self._pools[decode_node].take(num_decode)
        return tuple(map(SlotId, prefill)), tuple(map(SlotId, decode))

    def _keep(self, placement: Placement, tokens: int, new_keys: tuple[BlockKey, ...]) -> None:
        placed = _Placed(placement, tokens, new_keys)
        self._index.expect(new_keys, placement.weights_id)
        for node_id, slots in (
            (placement.prefill_node, placement.prefill_slots),
            (placement.decode_node, placement.decode_slots),
        ):
            placed.slots.setdefault(node_id, set()).update(slots)
        self._placed[placement.request_id] = placed
        for engine_id in (placement.prefill_engine, placement.decode_engine):
            self._engines[engine_id].num_requests += 1
            self._engines[engine_id].load_tokens += tokens

    def _drop_if_over(self, placed: _Placed) -> None:
        if placed.finished and not any(placed.slots.values()):
            self._placed.pop(placed.placement.request_id, None)

    def _forget(self, request_id: RequestId) -> None:
        """The request's caller has its answer or has gone."""
        self._answers.pop(request_id, None)
        self._queue = deque(w for w in self._queue if w.request.request_id != request_id)

    def _take_back(self, request_id: RequestId) -> None:
        """A request that still waits, for blocks or for a place, is not wanted any more."""
        answer = self._answers.get(request_id)
        if answer is not None and not answer.done():
            answer.set_exception(PlacementTimeout(f"{request_id} was taken back"))
        self._place()

    def _end_prefill(self, placed: _Placed) -> None:
        placed.prefilling = False
        self._unload(placed.placement.prefill_engine, placed.tokens)

    def _unload(self, engine_id: EngineId, tokens: int) -> None:
        self._engines[engine_id].num_requests -= 1
        self._engines[engine_id].load_tokens -= tokens

    def _give_back(self, placed: _Placed, node_id: NodeId, slots: Sequence[SlotId]) -> None:
        held = placed.slots.get(node_id, set())
        returning = [slot for slot in slots if slot in held]
        held.difference_update(returning)
        self._pools[node_id].give_back(returning)

    def _loads(self, role: EngineRole, room_for: int = 0) -> Iterable[EngineLoad]:
        for engine in self._engines.values():
            if engine.info.role is not role:
                continue
            if role is EngineRole.DECODE and engine.info.kv_tokens < room_for:
                continue
            yield engine.load()

    def _nodes(self, role: EngineRole) -> set[NodeId]:
        return {e.info.node_id for e in self._engines.values() if e.info.role is role}

    @property
    def _block_tokens(self) -> int:
        assert self._layout is not None, "no node has registered"
        return self._layout.block_tokens

    def _refuse_misfits(self, request: TurnRequest) -> None:
        """A request that would not even fit an empty cluster must not wait for ever."""
        nodes = {role: self._nodes(role) for role in EngineRole}
        sides = 2 if nodes[EngineRole.PREFILL] & nodes[EngineRole.DECODE] else 1
        needed = sides * -(-request.prompt_tokens // self._block_tokens)
        room = min(self._lendable_slots[node] for node in self._pools)
        if needed > room:
            raise RequestRefused(
                f"{request.request_id} needs {needed} staging slots for its {request.prompt_tokens} "
                f"prompt tokens, the smallest node lends {room}; raise kvstore.staging_bytes"
            )
        kv_tokens = [e.info.kv_tokens for e in self._engines.values() if e.info.role is EngineRole.DECODE]
        if _context(request) > max(kv_tokens):
            raise RequestRefused(
                f"{request.request_id} may grow to {_context(request)} tokens, the largest decode "
                f"engine holds {max(kv_tokens)}; raise engines.decode_kv_bytes"
            )

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


def _context(request: TurnRequest) -> int:
    """Tokens the turn may hold at its end."""
    return request.prompt_tokens + request.max_output_tokens

"""Writes a decode engine's full blocks to the store, beside decoding.

    prompt blocks      from the staging slots they were assembled in; a slot goes back to the scheduler
                       when it is written and copied into the pool
    generated blocks   pool block -> one of the engine's reserve slots -> store

The engine loop says what leaves; a Copier moves it beside the steps, and a block keeps its place in the pool
until it is copied. Where blocks are small, consecutive generated blocks of a turn leave together, in packs: a
pack goes when it is full, or when its turn ends for whatever reason. Blocks wait in the pool, where a running
turn has them anyway, so waiting takes room from nobody. A pack is at most half of the reserve, so one is
filled while another is written. Blocks that are stored already, as the same tokens were computed before, are
not written again.

A block is expected in the index before the turn it belongs to is answered, so the agent's next turn finds it
(read-your-writes); it is announced when it is written. A block that could not be stored is cancelled.
Nothing the turn waits for depends on the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

from torch import Tensor

from engines.copier import Copier
from engines.errors import EngineFailed
from engines.peers import NodePeer, SchedulerPeer
from engines.persist_reserve import PersistReserve
from engines.traffic_manager import TrafficManager
from engines.types import (
    AnnouncedBlock,
    BlockId,
    BlockPersist,
    HandOver,
    RequestId,
    SlotId,
    SlotRelease,
)
from kvstore.checksum import layer_checksums
from kvstore.errors import StoreError
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout

logger = logging.getLogger(__name__)
Message = Callable[[], None]
_LOOK_EVERY_S = 0.02


@dataclass(slots=True)
class _PromptSlots:
    """Slots of one prompt: which are still to be written, and whether the pool has its copy."""

    unwritten: set[SlotId]
    written: set[SlotId]
    copied: bool


@dataclass(frozen=True, slots=True)
class _OutgoingBlock:
    request_id: RequestId
    key: BlockKey
    parent: BlockKey
    block: BlockId
    weights_id: WeightsId


_Pack = list[_OutgoingBlock]
"""Full blocks of one turn, in order."""


class Persistence:
    """The writing side of one decode engine.

    Methods say which thread they belong to: the event loop, or the engine loop that owns the pool.
    """

    def __init__(
        self,
        traffic: TrafficManager,
        node: NodePeer,
        scheduler: SchedulerPeer,
        reserve: PersistReserve,
        copier: Copier,
        *,
        run_on_loop: Callable[[Message], None],
        deadline_s: float,
    ) -> None:
        self._traffic = traffic
        self._node = node
        self._scheduler = scheduler
        self._copier = copier
        self._run_on_loop = run_on_loop
        self._deadline_s = deadline_s
        self._events = asyncio.get_running_loop()
        # event loop
        self._prompts: dict[RequestId, _PromptSlots] = {}
        self._expected: dict[RequestId, set[Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing: dict[RequestId, set[asyncio.Task[None]]] = {}
        # engine loop
        self._reserve = deque(reserve.slots)
        self._pack_blocks = reserve.pack_blocks
        self._filling: dict[RequestId, _Pack] = {}
        """The pack of each running turn that is not full yet."""
        self._asking: list[_Pack] = []
        """Packs of which the scheduler is asked what is stored already."""
        self._leaving: deque[_Pack] = deque()
        """Packs that go as soon as there are slots for them."""
        self._copying: list[_Pack] = []
        """Packs that are on their way from the pool to reserve slots."""
        self._gone: list[_OutgoingBlock] = []
        """Blocks that are copied out or need not be, and have not been given back yet."""
        self._ended: set[RequestId] = set()

    # -- event loop ----------------------------------------------------------------------------------

    async def begin_prompt(self, turn: HandOver, layout: BlockLayout, *, waits_for_copy: bool) -> None:
        """Begin to write the prompt blocks that are not stored yet; the index expects them already."""
        placement = turn.placement
        first = placement.hit_tokens // layout.block_tokens
        blocks = [
            BlockPersist(
                slot=placement.decode_slots[i],
                key=turn.keys[i],
                parent=turn.keys[i - 1] if i else turn.chain_root,
                layer_checksums=turn.slot_checksums[i],
            )
            for i in range(first, len(turn.keys))
        ]
        new_slots = {block.slot for block in blocks}
        written = set(placement.decode_slots) - new_slots
        self._prompts[placement.request_id] = _PromptSlots(new_slots, written, not waits_for_copy)
        await self._release(placement.request_id)
        if blocks:
            storing = self._store_what_is_new(placement.request_id, blocks, placement.named_weights_id)
            self._write(placement.request_id, blocks, storing, self._prompt_written)

    def prompt_copied(self, request_id: RequestId) -> None:
        """The pool holds the prompt: slots need only be written now."""
        prompt = self._prompts.get(request_id)
        if prompt is not None:
            prompt.copied = True
            self.keep(self._events.create_task(self._release(request_id)))

    async def expected(self, request_id: RequestId) -> None:
        """Return when the index expects every block of the turn that is to be stored."""
        waits = [asyncio.wrap_future(wait) for wait in self._expected.pop(request_id, set())]
        if waits:
            await asyncio.wait(waits, timeout=self._deadline_s)

    async def settled(self, request_id: RequestId, deadline_s: float) -> None:
        """Return when no write reads the request's slots any more."""
        tasks = self._writing.get(request_id)
        if tasks:
            await asyncio.wait(tasks, timeout=deadline_s)

    async def idle(self, deadline_s: float) -> bool:
        """Whether, by the deadline at the latest, nothing is on its way from the pool to the store."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self._tasks or self._is_outgoing():  # noqa: ASYNC110 - half of it is another thread's
                    await asyncio.sleep(_LOOK_EVERY_S)
        return not self._tasks

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- engine loop ---------------------------------------------------------------------------------

    def renew_reserve(self, reserve: PersistReserve) -> None:
        """Nothing is outgoing: these are the slots from now on."""
        self._reserve = deque(reserve.slots)

    @property
    def copying(self) -> bool:
        """Whether copies could begin, or blocks be given back, right now."""
        return bool(self._gone or (self._leaving and len(self._leaving[0]) <= len(self._reserve)))

    def add_block(self, turn: HandOver, key: BlockKey, parent: BlockKey, block: BlockId) -> None:
        """A pool block is full: it stays taken until its pack is copied out."""
        request_id, weights_id = turn.placement.request_id, turn.placement.named_weights_id
        pack = self._filling.setdefault(request_id, [])
        pack.append(_OutgoingBlock(request_id, key, parent, block, weights_id))
        if len(pack) >= self._pack_blocks:
            self._send(request_id)

    @property
    def blocks_coming_back(self) -> bool:
        """Whether blocks of ended turns are still to be copied out, and free after that."""
        return bool(self._ended)

    def copy_out(self, pool: Tensor) -> list[BlockId]:
        """Begin to copy packs from the pool [layers, blocks, ...] into reserve slots while there are enough.

        Returns the blocks of ended turns that have become free.
        """
        while self._leaving and len(self._leaving[0]) <= len(self._reserve):
            pack = self._leaving.popleft()
            slots = [self._reserve.popleft() for _ in pack]
            self._copying.append(pack)
            self._copier.copy(partial(self._copy, pool, pack, slots), partial(self._copied, pack))
        gone, self._gone = self._gone, []
        freed = [outgoing.block for outgoing in gone if outgoing.request_id in self._ended]
        self._ended &= {outgoing.request_id for outgoing in self._outgoing()}
        return freed

    def blocks_being_stored(self, request_id: RequestId) -> set[BlockId]:
        """The request's pool blocks that are still to be copied out."""
        return {o.block for o in self._outgoing() if o.request_id == request_id}

    def free_when_stored(self, request_id: RequestId) -> None:
        """The request has ended: its last pack goes; free its remaining blocks as they are copied out."""
        if request_id in self._filling:
            self._send(request_id)
        if self.blocks_being_stored(request_id):
            self._ended.add(request_id)

    def _send(self, request_id: RequestId) -> None:
        """The request's pack leaves once the scheduler has said what of it is stored already."""
        pack = self._filling.pop(request_id)
        self._asking.append(pack)
        wait = asyncio.run_coroutine_threadsafe(self._expect(request_id, pack), self._events)
        self._events.call_soon_threadsafe(lambda: self._expected.setdefault(request_id, set()).add(wait))

    def _leave(self, pack: _Pack, stored: Collection[BlockKey]) -> None:
        self._asking.remove(pack)
        self._gone += [outgoing for outgoing in pack if outgoing.key in stored]
        unstored = [outgoing for outgoing in pack if outgoing.key not in stored]
        if unstored:
            self._leaving.append(unstored)

    def _is_outgoing(self) -> bool:
        """A look from the event loop: lists are taken apart on the other thread."""
        return bool(self._filling or self._asking or self._leaving or self._copying)

    def _outgoing(self) -> Iterator[_OutgoingBlock]:
        """Every block that keeps its place in the pool for being stored."""
        return chain(self._gone, *self._filling.values(), *self._asking, *self._leaving, *self._copying)

    def _copied(self, pack: _Pack, done: Future[list[BlockPersist]]) -> None:
        """The pack lies in its slots, or its copy has failed: then so does the engine."""
        blocks = done.result()
        self._copying.remove(pack)
        self._gone += pack
        self._events.call_soon_threadsafe(self._write_generated, pack, blocks)

    # -- on the copier's thread ----------------------------------------------------------------------

    def _copy(self, pool: Tensor, pack: _Pack, slots: Sequence[SlotId]) -> list[BlockPersist]:
        self._traffic.store_blocks(pool, [outgoing.block for outgoing in pack], slots)
        staging = self._traffic.staging
        return [
            BlockPersist(slot, o.key, o.parent, layer_checksums(staging.layout, staging.slot(slot)))
            for o, slot in zip(pack, slots, strict=True)
        ]

    # -- inside, event loop --------------------------------------------------------------------------

    async def _expect(self, request_id: RequestId, pack: _Pack) -> None:
        """Have the index expect the blocks; then the engine loop may copy out those not stored yet."""
        stored: Collection[BlockKey] = ()
        try:
            async with asyncio.timeout(self._deadline_s):
                keys = [outgoing.key for outgoing in pack]
                stored = await self._scheduler.expect(keys, pack[0].weights_id, request_id)
        except (EngineFailed, TimeoutError) as error:
            logger.warning("blocks of %s may not be found by its next turn: %s", request_id, error)
        finally:
            self._run_on_loop(lambda: self._leave(pack, stored))

    def _write_generated(self, pack: _Pack, blocks: list[BlockPersist]) -> None:
        storing = self._store(blocks, pack[0].weights_id)
        self._write(pack[0].request_id, blocks, storing, self._reserve_written)

    def _write(
        self,
        request_id: RequestId,
        blocks: list[BlockPersist],
        storing: Coroutine[None, None, None],
        then: Callable[[RequestId, list[SlotId]], None],
    ) -> None:
        async def write() -> None:
            try:
                await storing
            finally:
                then(request_id, [block.slot for block in blocks])

        task = self._events.create_task(write())
        self.keep(task)
        writing = self._writing.setdefault(request_id, set())
        writing.add(task)
        task.add_done_callback(lambda done: self._written(request_id, done))

    def _written(self, request_id: RequestId, task: asyncio.Task[None]) -> None:
        writing = self._writing.get(request_id, set())
        writing.discard(task)
        if not writing:
            self._writing.pop(request_id, None)

    async def _store_what_is_new(
        self, request_id: RequestId, blocks: list[BlockPersist], weights_id: WeightsId
    ) -> None:
        """Write those of a prompt's blocks that are not stored: the last of a whole prompt often is."""
        try:
            stored = set(await self._scheduler.stored([block.key for block in blocks]))
        except EngineFailed:
            stored = set()  # to write a block again does no harm
        new = [block for block in blocks if block.key not in stored]
        if new:
            await self._store(
                new, weights_id, lambda: self._take_written(request_id, [block.slot for block in blocks])
            )

    async def _store(
        self,
        blocks: list[BlockPersist],
        weights_id: WeightsId,
        release: Callable[[], SlotRelease | None] = lambda: None,
    ) -> None:
        """Write the blocks; the index is told what became of them, and what slots that `release`s."""
        try:
            locations = await self._node.persist(blocks, weights_id, self._deadline_s)
        except (EngineFailed, StoreError) as error:
            logger.warning("%d blocks were not stored: %s", len(blocks), error)
            locations = (None,) * len(blocks)
        stored = [
            AnnouncedBlock(block.key, block.parent, location)
            for block, location in zip(blocks, locations, strict=True)
            if location is not None
        ]
        done = {block.key for block in stored}
        failed = [block.key for block in blocks if block.key not in done]
        with suppress(EngineFailed):  # the next scheduler finds them in the store
            await self._scheduler.announce(stored, failed, weights_id, release())

    def _prompt_written(self, request_id: RequestId, slots: Iterable[SlotId]) -> None:
        """Where nothing was announced, nothing has been released along with it."""
        released = self._take_written(request_id, slots)
        if released is not None:
            self.keep(self._events.create_task(self._give_back(released)))

    def _reserve_written(self, request_id: RequestId, slots: Iterable[SlotId]) -> None:
        self._run_on_loop(lambda: self._reserve.extend(slots))

    async def _release(self, request_id: RequestId) -> None:
        """Give back the slots nobody here needs any more."""
        released = self._take_written(request_id)
        if released is not None:
            await self._give_back(released)

    async def _give_back(self, released: SlotRelease) -> None:
        with suppress(EngineFailed):  # the next scheduler has lent none
            await self._scheduler.release_slots(released.request_id, released.slots)

    def _take_written(self, request_id: RequestId, written: Iterable[SlotId] = ()) -> SlotRelease | None:
        """These slots of a prompt are written now; the slots of it that nobody here needs any more."""
        prompt = self._prompts.get(request_id)
        if prompt is None:
            return None
        prompt.written |= prompt.unwritten.intersection(written)
        prompt.unwritten -= prompt.written
        if not prompt.copied:
            return None
        slots, prompt.written = prompt.written, set()
        if not prompt.unwritten:
            self._prompts.pop(request_id, None)
        return SlotRelease(request_id, tuple(sorted(slots))) if slots else None

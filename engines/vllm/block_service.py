"""A vLLM server's own node: staging memory, the block store, its index, and what is read and written.

It brings stored blocks into slots and writes slots to the store; it knows no requests and no pages. One
thread of its own runs an event loop to which index and reads belong; vLLM's scheduler thread asks with
`find` and never waits here. Servers that share a directory see each other's blocks by looking (`refresh_s`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engines.store_keeper import StoreKeeper
from engines.vllm.slot_room import HeldSlot, SlotRoom
from kvstore.config import StoreConfig
from kvstore.errors import StoreError
from kvstore.files import PosixFiles
from kvstore.indexed_blocks import IndexedBlock
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout
from kvstore.open_store import open_owner, open_store
from kvstore.segment_follower import SegmentFollower
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.storage_traffic import StorageTraffic
from kvstore.store import BlockRead, BlockWrite, ReadStatus
from kvstore.traffic_ledger import STORAGE_HOPS, TrafficLedger

logger = logging.getLogger(__name__)
T = TypeVar("T")

_CLOSE_DEADLINE_S = 30.0
_RETRY_S = 0.002
"""Between two looks for free slots."""


@dataclass(frozen=True, slots=True)
class HitBlock:
    """A block that lies in staging memory, verified; its slot is held until it is let go."""

    held: HeldSlot
    layer_checksums: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """Consecutive blocks of a context, from its block `first` on."""

    first: int
    blocks: tuple[HitBlock, ...]
    num_known: int = 0
    """Blocks of the context that are stored or being saved, from its start."""

    @property
    def end(self) -> int:
        """The block after the last."""
        return self.first + len(self.blocks)


@dataclass(frozen=True, slots=True)
class OutgoingBlock:
    """A block that lies in a taken slot, to be stored."""

    key: BlockKey
    parent: BlockKey
    slot: int
    layer_checksums: bytes


class BlockService:
    """One per server. Public methods may be called from any thread."""

    def __init__(self, config: StoreConfig, layout: BlockLayout, weights_id: WeightsId) -> None:
        """Open the store and find what it holds for `weights_id`.

        Raises StoreError or StagingError, in one line.
        """
        assert config.path is not None
        self._config = config
        self._weights_id = weights_id
        directory = Path(config.path)
        writer_id = f"vllm-{uuid.uuid4().hex[:16]}"
        self._staging = StagingMemory.create("vllm", layout, config.staging_bytes // layout.slot_bytes)
        self.room = SlotRoom(self._staging.num_slots, config.dram_bytes // layout.slot_bytes)
        store = open_store(config, self._staging, directory=directory, writer_id=writer_id)
        self._store = StorageTraffic(store, layout, TrafficLedger(), None)
        self._follower = SegmentFollower(directory, layout, PosixFiles(), writer_id=writer_id)
        owner = open_owner(config, directory=directory, num_writers=1)
        self._keeper = StoreKeeper(owner, refresh_s=config.refresh_s)
        self._sums: dict[int, bytes] = {}
        """Layer sums of the block in each slot that holds one."""
        self._arriving: dict[BlockKey, asyncio.Future[None]] = {}
        """Blocks that are being saved, until they can be found in memory or in the store."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._figures: Counter[str] = Counter()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kv-blocks", daemon=True)
        self._thread.start()
        self._run(self._open()).result(config.deadline_s + _CLOSE_DEADLINE_S)

    @property
    def layout(self) -> BlockLayout:
        return self._staging.layout

    @property
    def staging(self) -> StagingHandle:
        return self._staging.handle

    @property
    def weights_id(self) -> WeightsId:
        return self._weights_id

    def find(self, keys: Sequence[BlockKey], first: int) -> Future[Hit]:
        """Bring the blocks from `first` on of a context's longest stored prefix into slots.

        `keys` are those of the context from its start. The hit is empty where nothing is stored, or where
        its first block turns out to be lost.
        """
        return self._run(self._find(list(keys), first))

    def let_go(self, hit: Hit) -> None:
        """The hit's slots are read no more."""
        self.room.let_go(block.held for block in hit.blocks)

    def abandon(self, found: Future[Hit]) -> None:
        """Nobody wants what `find` is looking for."""
        found.add_done_callback(lambda done: self.let_go(done.result()) if _succeeded(done) else None)

    def lost(self, key: BlockKey) -> None:
        """The block is not what it should be: nobody gets it any more."""
        self.room.drop(key)
        self._post(lambda: self._forget(key))

    def expect(self, keys: Sequence[BlockKey]) -> None:
        """These blocks are being saved: who looks for one waits. Ends with `store`."""
        weights_id = self._weights_id
        self._post(lambda: self._expect(keys, weights_id))

    def store(self, blocks: Sequence[OutgoingBlock]) -> None:
        """Write expected blocks from their slots, which are the service's from now on."""
        weights_id = self._weights_id
        self._post(lambda: self._start(self._write(list(blocks), weights_id)))

    def flush(self) -> None:
        """Return when all that `store` was given so far is written or given up."""
        self._run(self._flush()).result(self._config.deadline_s + _CLOSE_DEADLINE_S)

    def renew(self, weights_id: WeightsId) -> None:
        """The model has other weights: nothing stored until now is found any more."""
        self._run(self._renew(weights_id)).result(self._config.deadline_s)

    def figures(self) -> dict[str, int]:
        """Counted since the start: blocks looked for, found, read by status, stored; bytes by storage hop."""
        return dict(self._figures) | self._store.ledger.by_hop(STORAGE_HOPS)

    def close(self) -> None:
        """Finish what is being written and let another process own the directory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._run(self._close()).result(_CLOSE_DEADLINE_S)
        except FutureTimeout:
            logger.warning("blocks were still being written after %s s", _CLOSE_DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_DEADLINE_S)
        self._store.close()
        self._staging.close()

    # -- on the service's thread ---------------------------------------------------------------------

    async def _open(self) -> None:
        await self._keeper.open(self.layout, self._weights_id)
        await self._follow()
        self._following = self._loop.create_task(self._follow_now_and_then())

    async def _find(self, keys: list[BlockKey], first: int) -> Hit:
        end_s = time.monotonic() + self._config.deadline_s
        known = self._keeper.index.match(keys)
        await self._arrived(known.pending, end_s)
        if known.pending:
            known = self._keeper.index.match(keys)
        stored = {block.key: block for block in known.stored}
        wanted = _leading(keys[first : known.num_blocks], lambda key: key in stored or self.room.keeps(key))[
            : self.room.num_slots
        ]
        self._figures["looked_for"] += max(0, len(keys) - first)
        if not wanted:
            return Hit(first, (), known.num_blocks)
        held = await self._acquire(wanted, end_s)
        good = await self._read(held, stored, end_s)
        self._figures["found"] += len(good)
        return Hit(first, tuple(good), known.num_blocks if len(good) == len(wanted) else first + len(good))

    async def _acquire(self, keys: list[BlockKey], end_s: float) -> list[HeldSlot]:
        """Slots for as many of `keys` as there are by the deadline; none is held while waiting."""
        while (held := self.room.acquire(keys)) is None:
            if time.monotonic() >= end_s:
                keys = keys[: len(keys) // 2]
            else:
                await asyncio.sleep(_RETRY_S)
        return held

    async def _read(
        self, held: list[HeldSlot], stored: dict[BlockKey, IndexedBlock], end_s: float
    ) -> list[HitBlock]:
        """Read what is not in memory; the blocks before the first that cannot be had."""
        to_read = [each for each in held if not each.kept and each.key in stored]
        reads = [
            BlockRead(each.key, stored[each.key].location, self._staging.slot(each.slot)) for each in to_read
        ]
        pinned = {read.location.segment for read in reads}
        self._keeper.index.pin(pinned)
        try:
            deadline_s = max(0.0, end_s - time.monotonic())
            results = await asyncio.to_thread(self._store.read, reads, deadline_s) if reads else []
        finally:
            self._keeper.index.unpin(pinned)
        answers = {each.key: result for each, result in zip(to_read, results, strict=True)}
        good: list[HitBlock] = []
        ended = False
        for each in held:
            answer = answers.get(each.key)
            arrived = each.kept or (answer is not None and answer.status is ReadStatus.OK)
            if answer is not None:
                self._figures[f"reads_{answer.status.value}"] += 1
                if arrived:
                    self._sums[each.slot] = answer.layer_checksums
                    each = self.room.keep(each)
                elif answer.settled is None:
                    self._forget(each.key)
            ended = ended or not arrived
            if not ended:
                good.append(HitBlock(each, self._sums[each.slot]))
            elif answer is not None and answer.settled is not None:
                self.room.quarantine(each.slot, answer.settled)
            else:
                self.room.let_go([each])
        return good

    async def _arrived(self, keys: Iterable[BlockKey], end_s: float) -> None:
        """Return when none of `keys` is being saved any more, or at the deadline."""
        waits = [self._arriving[key] for key in keys if key in self._arriving]
        if waits:
            await asyncio.wait(waits, timeout=max(0.0, end_s - time.monotonic()))

    def _expect(self, keys: Sequence[BlockKey], weights_id: WeightsId) -> None:
        if weights_id != self._weights_id:
            return
        self._keeper.index.expect(keys, weights_id)
        for key in keys:
            self._arriving.setdefault(key, self._loop.create_future())

    def _end_arrival(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            arriving = self._arriving.pop(key, None)
            if arriving is not None and not arriving.done():
                arriving.set_result(None)

    async def _write(self, blocks: list[OutgoingBlock], weights_id: WeightsId) -> None:
        index = self._keeper.index
        held = []
        for block in blocks:
            self._sums[block.slot] = block.layer_checksums
            own = HeldSlot(block.key, block.slot, kept=False)
            held.append(self.room.keep(own) if weights_id == self._weights_id else own)
        self._end_arrival(each.key for each in held if each.kept)
        by_key = {block.key: block for block in blocks if not index.is_stored(block.key)}
        new = list(by_key.values())
        writes = [
            BlockWrite(
                block.key,
                block.parent,
                weights_id,
                self._staging.slot(block.slot),
                block.layer_checksums,
            )
            for block in new
        ]
        locations = []
        if writes and weights_id == self._weights_id:
            locations = await asyncio.to_thread(self._store.write, writes, self._config.deadline_s)
        written = set[str]()
        if weights_id == self._weights_id:
            for block, location in zip(new, locations, strict=True):
                if location is not None:
                    index.announce(block.key, location, weights_id, block.parent)
                    written.add(location.segment)
            index.cancel([block.key for block in blocks])  # of those that were not stored
            self._figures["stored"] += sum(location is not None for location in locations)
        self._end_arrival(block.key for block in blocks)
        self.room.let_go(held)
        self._keeper.make_room(written, self._weights_id)

    def _forget(self, key: BlockKey) -> None:
        self._keeper.index.discard(key)

    async def _renew(self, weights_id: WeightsId) -> None:
        self._weights_id = weights_id
        self._keeper.index.drop_weights_except(weights_id)
        self._end_arrival(list(self._arriving))
        self.room.clear()

    async def _follow(self) -> None:
        """Learn of what other servers have stored since the last look."""
        weights_id = self._weights_id
        try:
            grown = await asyncio.to_thread(self._follower.grown, weights_id)
        except StoreError as error:
            logger.warning("%s: what other servers stored is not found", error)
            return
        index = self._keeper.index
        for contents, records in grown if weights_id == self._weights_id else ():
            for record in records:
                key = contents.key(record)
                if not index.is_stored(key):
                    index.announce(key, contents.location(record), weights_id, contents.parent(record))

    async def _follow_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._config.refresh_s)
            await self._follow()

    async def _flush(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_DEADLINE_S / 2)

    async def _close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        await self._flush()
        await self._keeper.close()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- from other threads --------------------------------------------------------------------------

    def _post(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _leading(keys: list[BlockKey], found: Callable[[BlockKey], bool]) -> list[BlockKey]:
    for number, key in enumerate(keys):
        if not found(key):
            return keys[:number]
    return keys


def _succeeded(done: Future[Hit]) -> bool:
    return not done.cancelled() and done.exception() is None

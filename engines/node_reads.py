"""Reads what a node was told to read, and gives up what the scheduler moves to the other side.

What is read next is engines.read_queue's business; here it is read, in threads, into the slots that the
loads name. A load is answered when each of its blocks has met its end, or early, when some of it is to be
read on the other side: so whoever asked can have it read there while the rest goes on here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from engines.errors import EngineFailed
from engines.late_reads import LateReads
from engines.peers import SchedulerPeer
from engines.read_messages import BlockLoad, LoadId, MoveOrder, ReadAnswer, ReadReport
from engines.read_queue import Chunk, ReadQueue, carried_out, chunks_of
from engines.read_reporter import ReadReporter
from engines.slot_contents import SlotContents
from engines.timeline import Lanes, Timeline
from engines.types import NodeId, ReadSide, RequestId, SlotId
from kvstore.config import StoreConfig
from kvstore.staging import StagingMemory
from kvstore.store import BlockRead, BlockReadResult, BlockStore, ReadStatus

logger = logging.getLogger(__name__)

_LET_GO_SLACK_S = 2.0
_LOOK_EVERY_S = 0.02
_FORGET_S = 60.0
"""A load whose time is over is forgotten if nobody asks for its rest within as much more."""


@dataclass(frozen=True, slots=True)
class ReadRules:
    """How a node reads; what each means is said in StoreConfig."""

    chunk_bytes: int
    depth: int
    report_s: float
    io_deadline_s: float
    """For the blocks of one load, from when the first of them has begun."""

    @classmethod
    def of(cls, config: StoreConfig) -> ReadRules:
        return cls(config.read_chunk_bytes, config.read_depth, config.read_report_s, config.deadline_s)


@dataclass(slots=True)
class _Load:
    """A load that is not answered in full yet."""

    request_id: RequestId
    side: ReadSide
    blocks: list[int]
    end_s: float
    results: dict[int, BlockReadResult | None] = field(default_factory=dict)
    """By block, what has met its end here."""
    moved: list[MoveOrder] = field(default_factory=list)
    """Not told yet."""
    moved_blocks: set[int] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    io_end_s: float | None = None
    timer: asyncio.TimerHandle | None = None
    is_unwanted: bool = False
    """Nobody will ask for its rest."""

    @property
    def is_over(self) -> bool:
        return len(self.results) + len(self.moved_blocks) == len(self.blocks)

    def deadline_s(self, now_s: float) -> float:
        ends = self.end_s if self.io_end_s is None else min(self.end_s, self.io_end_s)
        return max(0.0, ends - now_s)


class NodeReads:
    """One per node. Its methods run on the node's event loop."""

    def __init__(
        self,
        node_id: NodeId,
        store: BlockStore,
        staging: StagingMemory,
        rules: ReadRules,
        timeline: Timeline,
    ) -> None:
        self._node_id = node_id
        self._timeline = timeline
        self._lanes = Lanes("snic read")
        self._store = store
        self._staging = staging
        self._rules = rules
        self._contents = SlotContents(staging)
        self._queue = ReadQueue(rules.chunk_bytes, rules.depth)
        self._loads: dict[LoadId, _Load] = {}
        self._ids = itertools.count(1)
        self._readers = ThreadPoolExecutor(rules.depth, thread_name_prefix=f"{node_id}-read")
        self._checkers = ThreadPoolExecutor(1, thread_name_prefix=f"{node_id}-check")
        self._late = LateReads(node_id, self._tell_settled)
        self._reporter = ReadReporter(self._send_report, self.report, self.give_up, rules.report_s)
        self._scheduler: SchedulerPeer
        self._closed = False
        self._num_reading_ahead = 0
        """Chunks."""
        self._arrived_bytes = 0
        """Of records, for the rate of the storage NIC."""
        self.read_bytes: Counter[ReadSide] = Counter()
        """Of blocks that were read and are right, by the side they were read for."""
        self.ahead_bytes = 0
        """Of blocks that were read before any turn asked for them."""
        self.moved_bytes: Counter[ReadSide] = Counter()
        """Of blocks that were given up here, by the side that reads them instead."""
        self.bad_reads: Counter[str] = Counter()

    def connect(self, scheduler: SchedulerPeer) -> None:
        """`scheduler` gets reports, and hears of slots whose late reads have ended."""
        self._scheduler = scheduler

    # -- loads ---------------------------------------------------------------------------------------

    async def load(
        self, request_id: RequestId, loads: Sequence[BlockLoad], side: ReadSide, deadline_s: float
    ) -> ReadAnswer:
        """Read blocks behind all that was asked for before, or see that they are in their slots already."""
        now_s = time.monotonic()
        load_id = LoadId(next(self._ids))
        load = _Load(request_id, side, [one.block for one in loads], now_s + deadline_s)
        assert len(set(load.blocks)) == len(loads), "a block is asked for twice"
        self._loads[load_id] = load
        if load.is_over:  # there is nothing to do
            load.news.set()
        here = [one for one in loads if one.location is None]
        to_read = [one for one in loads if one.location is not None]
        load.timer = asyncio.get_running_loop().call_later(deadline_s, self._time_is_over, load_id)
        if here:
            self._verify(load_id, here, deadline_s)
        if to_read:
            self._queue.add(load_id, request_id, side, to_read, now_s)
            self._reporter.begin()
            self._pump()
        return await self._answer(load_id)

    async def read_ahead(
        self, loads: Sequence[BlockLoad], deadline_s: float
    ) -> tuple[BlockReadResult | None, ...]:
        """Read blocks that no turn has asked for, a chunk at a time, while no turn asks for any.

        None for each block that was not begun for that reason. The scheduler hears when the reads of blocks
        that timed out have settled.
        """
        end_s = time.monotonic() + min(deadline_s, self._rules.io_deadline_s)
        results: list[BlockReadResult | None] = []
        for chunk in chunks_of(loads, self._rules.chunk_bytes):
            if not self._queue.is_idle or self._closed:
                break
            for one in chunk:
                self._contents.forget(one.slot)
            reading = asyncio.get_running_loop().run_in_executor(
                self._readers, self._read, chunk, max(0.0, end_s - time.monotonic())
            )
            self._num_reading_ahead += 1
            try:
                await asyncio.wait([reading])
            finally:
                reading.add_done_callback(self._read_ahead_ended)
            ended = self._results(chunk, reading)
            self.ahead_bytes += _num_ok(ended) * self._block_bytes
            results += self._take_in(chunk, ended)
        return (*results, *([None] * (len(loads) - len(results))))

    def _read_ahead_ended(self, reading: object) -> None:
        self._num_reading_ahead -= 1

    async def rest(self, load_id: LoadId) -> ReadAnswer:
        """What `load` answers next."""
        if load_id not in self._loads:
            raise EngineFailed(f"{self._node_id} knows of no load {load_id}")
        return await self._answer(load_id)

    def drop(self, request_id: RequestId) -> None:
        """Do not begin what has not begun of the turn's."""
        for given_up in self._queue.drop(request_id, time.monotonic()):
            self._settle(given_up.load_id, ((one, None) for one in given_up.loads))
        self._note_if_empty()

    def let_go(self, request_id: RequestId, slots: Sequence[SlotId]) -> bool:
        """Begin nothing more for the turn; whether nothing is read into these slots of it any more."""
        self.drop(request_id)
        reading = (load for load in self._loads.values() if load.request_id == request_id)
        return all(load.is_over for load in reading) and not any(slot in self._late for slot in slots)

    async def let_go_of_all(self, deadline_s: float) -> None:
        """Begin nothing more of what was asked for; EngineFailed if something is still read after so long."""
        for load in list(self._loads.values()):
            self.drop(load.request_id)
        try:
            async with asyncio.timeout(deadline_s + _LET_GO_SLACK_S):
                while self._is_reading:  # noqa: ASYNC110 - reads end on many paths, and this is asked rarely
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise EngineFailed(f"{self._node_id} still reads into its memory") from None

    @property
    def _is_reading(self) -> bool:
        is_over = all(load.is_over for load in self._loads.values())
        return not is_over or bool(self._num_reading_ahead) or bool(len(self._late))

    def give_up(self, order: MoveOrder) -> None:
        """Leave to the other side what has not begun of the order's blocks."""
        for given_up in self._queue.give_up(order, time.monotonic()):
            load = self._loads[given_up.load_id]
            load.moved.append(carried_out(order, given_up.loads))
            load.moved_blocks.update(one.block for one in given_up.loads)
            self.moved_bytes[order.to_side] += len(given_up.loads) * self._block_bytes
            load.news.set()
        self._note_if_empty()

    def report(self) -> ReadReport:
        """What has been read since the start, and what has not begun."""
        return ReadReport(
            self._node_id,
            finished_tokens=self._queue.num_finished * self._staging.layout.block_tokens,
            read_bytes=self._arrived_bytes,
            busy_s=self._queue.busy_s(time.monotonic()),
            unread=self._queue.unread(),
        )

    def figures(self) -> dict[str, float]:
        """The queue, for metrics."""
        return {
            "read_queue_bytes": self._queue.unfinished_bytes,
            "read_busy_s": self._queue.busy_s(time.monotonic()),
        }

    def close(self) -> None:
        self._closed = True
        self._late.close()
        self._reporter.close()
        for load_id in self._loads:
            never_begun = self._queue.expire(load_id, time.monotonic())
            self._settle(load_id, ((one, None) for one in never_begun))
        for threads in (self._readers, self._checkers):
            threads.shutdown(wait=False, cancel_futures=True)

    @property
    def _block_bytes(self) -> int:
        return self._staging.layout.full_block_bytes

    async def _answer(self, load_id: LoadId) -> ReadAnswer:
        load = self._loads[load_id]
        await load.news.wait()
        load.news.clear()
        moved, load.moved = tuple(load.moved), []
        if not load.is_over:
            return ReadAnswer(load_id, None, moved)
        self._forget(load_id)
        results = tuple(load.results[block] for block in load.blocks if block not in load.moved_blocks)
        return ReadAnswer(load_id, results, moved)

    def _settle(self, load_id: LoadId, results: Iterable[tuple[BlockLoad, BlockReadResult | None]]) -> None:
        """These blocks of the load have met their end."""
        load = self._loads[load_id]
        for one, result in results:
            load.results[one.block] = result
            if result is not None and result.status is not ReadStatus.OK:
                self.bad_reads[result.status.value] += 1
        if load.is_over:
            load.news.set()
            if load.is_unwanted:
                self._forget(load_id)

    def _forget(self, load_id: LoadId) -> None:
        load = self._loads.pop(load_id, None)
        if load is not None and load.timer is not None:
            load.timer.cancel()

    def _time_is_over(self, load_id: LoadId) -> None:
        self._expire(load_id)
        later = asyncio.get_running_loop().call_later
        self._loads[load_id].timer = later(_FORGET_S, self._nobody_asks, load_id)

    def _nobody_asks(self, load_id: LoadId) -> None:
        """Whoever was to ask for its rest has gone: the load is forgotten as soon as its reads have ended."""
        self._loads[load_id].is_unwanted = True
        if self._loads[load_id].is_over:
            self._forget(load_id)

    def _expire(self, load_id: LoadId) -> None:
        """Begin no more of the load. What is in flight ends by its own deadline, which is now."""
        never_begun = self._queue.expire(load_id, time.monotonic())
        if never_begun:
            result = BlockReadResult(ReadStatus.TIMED_OUT)
            self._settle(load_id, ((one, result) for one in never_begun))
            settled = threading.Event()
            settled.set()
            self._late.watch({one.slot: settled for one in never_begun})
            self._note_if_empty()

    # -- reading -------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Keep as many chunks in flight as there may be."""
        while not self._closed and (chunk := self._queue.take()) is not None:
            now_s = time.monotonic()
            load = self._loads[chunk.load_id]
            if load.io_end_s is None:
                load.io_end_s = now_s + self._rules.io_deadline_s
            for one in chunk.loads:
                self._contents.forget(one.slot)
            reading = asyncio.get_running_loop().run_in_executor(
                self._readers, self._read, chunk.loads, load.deadline_s(now_s)
            )
            if self._timeline.samples(load.request_id):
                lane, draw = self._lanes.take(), self._draw
                reading.add_done_callback(partial(draw, load, chunk, lane, self._timeline.now_s()))
            reading.add_done_callback(partial(self._chunk_ended, chunk))

    def _draw(self, load: _Load, chunk: Chunk, lane: str, start_s: float, done: object) -> None:
        moved = any(one.moved for one in chunk.loads)
        self._timeline.add(
            lane,
            f"read {load.side.value} side{', moved' if moved else ''}",
            start_s,
            turn=load.request_id,
            first_block=chunk.loads[0].block,
            last_block=chunk.loads[-1].block,
            nbytes=chunk.nbytes,
            moved=moved,
        )
        self._lanes.give_back(lane)

    def _read(self, loads: Sequence[BlockLoad], deadline_s: float) -> list[BlockReadResult]:
        """In a thread."""
        reads = []
        for one in loads:
            assert one.location is not None, one
            reads.append(BlockRead(one.key, one.location, self._staging.slot(one.slot)))
        return self._store.read(reads, deadline_s)

    def _chunk_ended(self, chunk: Chunk, done: asyncio.Future[list[BlockReadResult]]) -> None:
        now_s = time.monotonic()
        self._queue.end(chunk, now_s)
        results = self._results(chunk.loads, done)
        self.read_bytes[self._loads[chunk.load_id].side] += _num_ok(results) * self._block_bytes
        self._arrived_bytes += chunk.nbytes * _num_arrived(results) // len(chunk.loads)
        plain = self._take_in(chunk.loads, results)
        if self._loads[chunk.load_id].deadline_s(now_s) == 0:
            self._expire(chunk.load_id)
        self._settle(chunk.load_id, zip(chunk.loads, plain, strict=True))
        self._pump()
        self._note_if_empty()

    def _take_in(
        self, loads: Sequence[BlockLoad], results: Sequence[BlockReadResult]
    ) -> list[BlockReadResult]:
        """Remember what is right and watch what is late; the results as they can travel."""
        late: dict[SlotId, threading.Event] = {}
        for one, result in zip(loads, results, strict=True):
            if result.status is ReadStatus.OK:
                self._contents.remember(one, result)
            elif result.settled is not None:
                late[one.slot] = result.settled
        if late:
            self._late.watch(late)
        # What tells a late read's end stays here: it does not travel between processes.
        return [result if result.settled is None else BlockReadResult(result.status) for result in results]

    def _results(
        self, loads: Sequence[BlockLoad], done: asyncio.Future[list[BlockReadResult]]
    ) -> list[BlockReadResult]:
        error = None if done.cancelled() else done.exception()
        if error is None and not done.cancelled():
            return done.result()
        if not self._closed:
            logger.error("%s could not read: %s", self._node_id, error)
        return [BlockReadResult(ReadStatus.FAILED)] * len(loads)

    def _verify(self, load_id: LoadId, loads: list[BlockLoad], deadline_s: float) -> None:
        """Are the blocks still in their slots? Checksums take time, so a thread of its own looks."""
        deadline_s = min(deadline_s, self._rules.io_deadline_s)
        checking = asyncio.get_running_loop().run_in_executor(
            self._checkers, self._contents.check, loads, deadline_s
        )
        checking.add_done_callback(lambda done: self._verified(load_id, loads, done))

    def _verified(
        self, load_id: LoadId, loads: list[BlockLoad], done: asyncio.Future[list[BlockReadResult]]
    ) -> None:
        results = self._results(loads, done)
        num_ok = sum(result.status is ReadStatus.OK for result in results)
        self.read_bytes[ReadSide.DRAM] += num_ok * self._block_bytes
        self._settle(load_id, zip(loads, results, strict=True))

    # -- the scheduler -------------------------------------------------------------------------------

    def _note_if_empty(self) -> None:
        if self._queue.is_idle:
            self._reporter.run_empty()

    async def _send_report(self, report: ReadReport) -> tuple[MoveOrder, ...]:
        return await self._scheduler.report_reads(report)

    async def _tell_settled(self, slots: list[SlotId]) -> None:
        await self._scheduler.settled(self._node_id, slots)


def _num_ok(results: Sequence[BlockReadResult]) -> int:
    return sum(result.status is ReadStatus.OK for result in results)


def _num_arrived(results: Sequence[BlockReadResult]) -> int:
    return sum(result.status in (ReadStatus.OK, ReadStatus.CORRUPT) for result in results)

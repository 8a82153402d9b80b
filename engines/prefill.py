"""A prefill engine: it computes prompts, layer by layer, and samples a turn's first token.

It keeps no KV. The hit blocks of a prompt pass through HBM one layer at a time, and what the decode engine's
node lacks is written into that node's staging memory as each layer ends (DualPath, arXiv 2602.21548,
section 4.1). Blocks that the plan has read on the decode side are read by that node into its own slots and
fetched from there. The decode engine gets the turn once its node holds the whole prompt.

A turn here: reading (event loop) -> ready -> computing (engine loop) -> handing over (event loop).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from engines.engine import Engine, EngineParts
from engines.errors import EngineFailed
from engines.model.runner import BatchShape, PrefillRow
from engines.peers import DecodePeer, NodePeer, SchedulerPeer
from engines.prefill_feed import FeedRow, PrefillFeed
from engines.sampling import Sampled, SampleSpec, sample
from engines.scheduling.burst import more_may_come
from engines.scheduling.prefill_batch import Waiting, pick_batch
from engines.stopping import StopCondition
from engines.types import (
    BlockLoad,
    EngineId,
    FinishReason,
    FirstToken,
    HandOver,
    HitLost,
    LostBlock,
    NodeId,
    PhaseSeconds,
    Placement,
    PrefillJob,
    PromptKeys,
    ReadSide,
    RequestId,
)
from kvstore.errors import TransferError
from kvstore.staging import StagingHandle
from kvstore.store import BlockReadResult, ReadStatus
from kvstore.transport import RegionHandle

_NAP_S = 0.001


@dataclass(frozen=True, slots=True)
class _Computed:
    sampled: Sampled
    slot_checksums: tuple[bytes, ...]
    phases: PhaseSeconds


@dataclass(slots=True)
class _Ready:
    job: PrefillJob
    hit_checksums: tuple[bytes, ...]
    done: asyncio.Future[_Computed]
    since_s: float


class PrefillEngine(Engine):
    """One GPU's (or CPU's) prefill engine. Public methods run on one event loop."""

    def __init__(self, engine_id: EngineId, parts: EngineParts) -> None:
        super().__init__(engine_id, parts)
        self._ready: list[_Ready] = []
        self._running: list[_Ready] = []
        self._turns: dict[RequestId, asyncio.Task[FirstToken | HitLost]] = {}
        self._aborted: set[RequestId] = set()
        self._unanswered: set[RequestId] = set()
        """Turns with a node that was to read for them and gave no answer: it may still write."""
        self._telling: set[asyncio.Task[None]] = set()
        self._num_reading = 0
        self._peak_resident_layers = 0

    async def connect(
        self,
        staging: StagingHandle,
        nodes: Mapping[NodeId, NodePeer],
        scheduler: SchedulerPeer,
        decode_engines: Mapping[EngineId, DecodePeer],
        regions: Mapping[NodeId, RegionHandle],
    ) -> None:
        """Join the cluster and begin to serve. `staging` is the own node's memory."""
        self._map(staging)
        self._nodes = nodes
        self._scheduler = scheduler
        self._decode_engines = decode_engines
        self._regions = regions
        self._loop.start()

    async def prefill(self, job: PrefillJob) -> FirstToken | HitLost:
        """Compute a placed prompt; returns when the decode engine has taken the turn over.

        A caller that goes away does not end the turn: its reads and its step would go on. `abort` does.
        """
        self._refuse_stale(job.placement)
        request_id = job.placement.request_id
        turn = self._events.create_task(self._serve(job))
        self._turns[request_id] = turn
        turn.add_done_callback(lambda turn: self._forget(request_id, turn))
        return await asyncio.shield(turn)

    async def abort(self, request_id: RequestId) -> None:
        """End a turn; returns when no read, step or hand-over touches its slots any more."""
        turn = self._turns.get(request_id)
        if turn is not None:
            self._aborted.add(request_id)
        await self._loop.call(lambda: self._drop(request_id), self._config.step_deadline_s)
        if turn is not None:
            await asyncio.wait([turn], timeout=self._config.step_deadline_s)
        if turn is not None and not turn.done():
            raise EngineFailed(f"{self._engine_id} could not end {request_id}")
        if request_id in self._unanswered:
            self._unanswered.discard(request_id)
            raise EngineFailed(f"a node that was to read for {request_id} did not answer")

    async def peak_resident_layers(self) -> int:
        """Most layers of hit KV that were ever in HBM at once."""
        return self._peak_resident_layers

    # -- on the event loop ---------------------------------------------------------------------------

    async def _serve(self, job: PrefillJob) -> FirstToken | HitLost:
        started_s = time.monotonic()
        results = await self._load(job)
        lost = _lost_blocks(job, results)
        if lost:
            return await self._hit_lost(job, lost)
        self._stop_if_aborted(job.placement.request_id)
        read_s = time.monotonic() - started_s
        computed = await self._compute(job, tuple(result.layer_checksums for result in results))
        self._stop_if_aborted(job.placement.request_id)
        handing_s = time.monotonic()
        finish_reason = await self._hand_over(job, computed)
        await self._scheduler.prefilled(job.placement.request_id)
        phases = PhaseSeconds(kv_load=read_s, kv_transfer=time.monotonic() - handing_s)
        return FirstToken(
            token_id=computed.sampled.token_id,
            logprob=computed.sampled.logprob,
            finish_reason=finish_reason,
            phases=phases + computed.phases,
            hit_tokens=job.placement.hit_tokens,
        )

    def _forget(self, request_id: RequestId, turn: asyncio.Task[FirstToken | HitLost]) -> None:
        self._turns.pop(request_id, None)
        self._aborted.discard(request_id)
        if not turn.cancelled():
            turn.exception()  # whoever asked may be gone: an error nobody waits for is no news

    def _stop_if_aborted(self, request_id: RequestId) -> None:
        if request_id in self._aborted:
            raise EngineFailed(f"{request_id} was aborted")

    async def _load(self, job: PrefillJob) -> tuple[BlockReadResult, ...]:
        """Have both sides read at once; returns when neither reads any more. Results are in block order."""
        blocks = list(job.placement.hit_blocks())
        if not blocks:
            return ()
        here = [index for index, (side, _, _) in enumerate(blocks) if side is not ReadSide.DECODE]
        there = [index for index, (side, _, _) in enumerate(blocks) if side is ReadSide.DECODE]
        loads = [
            BlockLoad(index, slot, block.key, None if side is ReadSide.DRAM else block.location)
            for index, (side, slot, block) in enumerate(blocks)
        ]
        self._num_reading += 1
        try:
            both = await asyncio.gather(
                self._load_side(job.placement, ReadSide.PREFILL, [loads[index] for index in here]),
                self._load_side(job.placement, ReadSide.DECODE, [loads[index] for index in there]),
                return_exceptions=True,  # one side's failure does not end the other side's reads
            )
        finally:
            self._num_reading -= 1
        results: dict[int, BlockReadResult] = {}
        for indices, side_results in zip((here, there), both, strict=True):
            if isinstance(side_results, BaseException):
                raise side_results
            results.update(zip(indices, side_results, strict=True))
        return tuple(results[index] for index in range(len(blocks)))

    async def _load_side(
        self, placement: Placement, side: ReadSide, loads: Sequence[BlockLoad]
    ) -> tuple[BlockReadResult, ...]:
        if not loads:
            return ()
        node = self._nodes[placement.read_node(side)]
        try:
            results = await node.load(loads, side, self._config.step_deadline_s)
        except EngineFailed:
            self._unanswered.add(placement.request_id)
            raise
        if any(load.location is not None for load in loads):
            telling = self._events.create_task(self._tell_reads_done(placement.request_id, side))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        return results

    async def _tell_reads_done(self, request_id: RequestId, side: ReadSide) -> None:
        with suppress(EngineFailed):  # the scheduler is gone: others will say so
            await self._scheduler.reads_done(request_id, side)

    async def _hit_lost(self, job: PrefillJob, lost: dict[int, LostBlock]) -> HitLost:
        """The first bad block ends the hit, and the attempt; the next one will not find those that failed."""
        await self._scheduler.hit_lost(job.placement.request_id, list(lost.values()))
        keys = tuple(block.key for block in lost.values())
        return HitLost(hit_tokens=min(lost) * self._layout.block_tokens, lost_keys=keys)

    async def _compute(self, job: PrefillJob, hit_checksums: tuple[bytes, ...]) -> _Computed:
        if self._failure is not None:
            raise EngineFailed(self._failure)
        done: asyncio.Future[_Computed] = self._events.create_future()
        ready = _Ready(job, hit_checksums, done, time.monotonic())
        self._loop.post(lambda: self._ready.append(ready))
        try:
            async with asyncio.timeout(self._config.step_deadline_s):
                return await done
        except TimeoutError:
            raise EngineFailed(
                f"{self._engine_id} did not compute {job.placement.request_id} within "
                f"{self._config.step_deadline_s} s"
            ) from None

    async def _hand_over(self, job: PrefillJob, computed: _Computed) -> FinishReason | None:
        sampled, block_tokens = computed.sampled, self._layout.block_tokens
        stop = StopCondition(job.sampling, job.earlier_ids, self._decoder)
        finish_reason = stop.push(sampled.token_id)
        num_tail = job.prompt_tokens - len(job.keys) * block_tokens
        turn = HandOver(
            placement=job.placement,
            prompt_tokens=job.prompt_tokens,
            keys=job.keys,
            chain_root=job.chain_root,
            tail_parent=job.keys[-1] if job.keys else job.chain_root,
            tail_ids=job.miss_ids[len(job.miss_ids) - num_tail :],
            slot_checksums=computed.slot_checksums,
            first_token=sampled.token_id,
            first_logprob=sampled.logprob,
            finish_reason=finish_reason,
            sampling=job.sampling,
            sample_id=job.sample_id,
            earlier_ids=job.earlier_ids,
        )
        await self._decode_engines[job.placement.decode_engine].hand_over(turn)
        return finish_reason

    # -- on the engine loop --------------------------------------------------------------------------

    def _step(self) -> bool:
        waiting = [Waiting(ready.job.placement.hit_tokens, len(ready.job.miss_ids)) for ready in self._ready]
        picked = pick_batch(
            waiting,
            limit_tokens=self._config.prefill_batch_tokens,
            padding_exact=self._runner.padding_exact,
        )
        if not picked:
            return False
        if len(picked) == len(waiting) and self._more_may_come():
            time.sleep(_NAP_S)
            return True
        batch = [self._ready[index] for index in picked]
        self._ready = [row for index, row in enumerate(self._ready) if index not in set(picked)]
        self._running = batch
        try:
            self._run(batch)
        except (TransferError, EngineFailed) as error:
            # The other end is at fault: these turns fail, the engine goes on.
            self._reject(batch, f"{self._engine_id} could not move KV: {error}")
        self._running = []
        return True

    def _more_may_come(self) -> bool:
        now_s = time.monotonic()
        return more_may_come(
            since_first_s=now_s - self._ready[0].since_s,
            since_last_s=now_s - self._ready[-1].since_s,
            num_on_their_way=self._num_reading,
            linger_s=self._config.burst_linger_s,
        )

    def _run(self, batch: list[_Ready]) -> None:
        started_s = time.monotonic()
        rows = [
            PrefillRow(
                ready.job.placement.hit_tokens,
                ready.job.miss_ids,
                PromptKeys(ready.job.chain_root, ready.job.keys),
            )
            for ready in batch
        ]
        shape = BatchShape(tuple(row.hit_tokens for row in rows), tuple(len(row.token_ids) for row in rows))
        buffers = self._runner.new_buffer(shape), self._runner.new_buffer(shape)
        feed = PrefillFeed(
            self._traffic,
            buffers,
            shape,
            [self._feed_row(ready) for ready in batch],
            self._config.step_deadline_s,
        )
        try:
            logits = self._runner.prefill(rows, feed)
            sampled = sample(logits, [self._spec(ready.job) for ready in batch])
        finally:
            feed.finish()
        self._peak_resident_layers = max(self._peak_resident_layers, feed.peak_resident_layers)
        moving_s = feed.load_wait_s + feed.fetch_wait_s + feed.send_wait_s
        compute_s = time.monotonic() - started_s - moving_s
        for index, ready in enumerate(batch):
            phases = PhaseSeconds(
                queue=started_s - ready.since_s,
                kv_load=feed.load_wait_s,
                prefill=compute_s,
                kv_transfer=feed.fetch_wait_s + feed.send_wait_s,
            )
            self._resolve(ready, _Computed(sampled[index], _checksums(ready, feed, index), phases))

    def _feed_row(self, ready: _Ready) -> FeedRow:
        placement = ready.job.placement
        return FeedRow(
            tuple(None if side is ReadSide.DECODE else slot for side, slot, _ in placement.hit_blocks()),
            ready.hit_checksums,
            placement.decode_slots,
            self._regions[placement.decode_node],
            hit_sent=False,
        )

    def _spec(self, job: PrefillJob) -> SampleSpec:
        return SampleSpec(job.sample_id, len(job.earlier_ids), job.sampling, self._job_seed)

    def _drop(self, request_id: RequestId) -> None:
        waiting, self._ready = self._ready, []
        for ready in waiting:
            if ready.job.placement.request_id == request_id:
                self._reject([ready], f"{request_id} was aborted")
            else:
                self._ready.append(ready)

    def _resolve(self, ready: _Ready, computed: _Computed) -> None:
        def set_result() -> None:
            if not ready.done.done():
                ready.done.set_result(computed)

        self._events.call_soon_threadsafe(set_result)

    def _fail_all(self, failure: str) -> None:
        self._failure = failure
        self._reject([*self._running, *self._ready], failure)

    def _reject(self, batch: list[_Ready], failure: str) -> None:
        def set_exceptions() -> None:
            for ready in batch:
                if not ready.done.done():
                    ready.done.set_exception(EngineFailed(failure))

        self._events.call_soon_threadsafe(set_exceptions)


def _lost_blocks(job: PrefillJob, results: Sequence[BlockReadResult]) -> dict[int, LostBlock]:
    """By their place in the prompt, the hit's blocks that cannot be used."""
    hits = zip(job.placement.hit_blocks(), results, strict=True)
    return {
        index: LostBlock(block.key, slot, side, late=result.status is ReadStatus.TIMED_OUT)
        for index, ((side, slot, block), result) in enumerate(hits)
        if result.status is not ReadStatus.OK
    }


def _checksums(ready: _Ready, feed: PrefillFeed, index: int) -> tuple[bytes, ...]:
    """Per decode slot: the store's checksums for hit blocks, the feed's for new ones."""
    return (*ready.hit_checksums, *feed.new_checksums(index))

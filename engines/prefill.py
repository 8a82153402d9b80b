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
from collections.abc import Mapping

from engines.absences import Absences
from engines.batch_trace import BatchTrace, TracedFeed
from engines.engine import Engine, EngineParts
from engines.errors import EngineFailed
from engines.model.runner import BatchShape, PrefillRow
from engines.open_feed import BatchFeed, open_feed
from engines.peers import DecodePeer, NodePeer, SchedulerPeer
from engines.prefill_batching import PrefillBatching
from engines.prompt_progress import Computed, PromptProgress
from engines.read_messages import LostBlock
from engines.sampling import SampleSpec, sample
from engines.scheduling.burst import more_may_come
from engines.scheduling.prefill_quota import PromptRest
from engines.stopping import StopCondition
from engines.turn_reads import LoadedHit, TurnReads
from engines.types import (
    EngineId,
    FinishReason,
    FirstToken,
    HandOver,
    HitLost,
    NodeId,
    PhaseSeconds,
    PrefillJob,
    RequestId,
)
from kvstore.errors import LateWrite, TransferError
from kvstore.staging import StagingHandle
from kvstore.transport import RegionHandle

_NAP_S = 0.001


class PrefillEngine(Engine):
    """One GPU's (or CPU's) prefill engine. Public methods run on one event loop."""

    def __init__(self, engine_id: EngineId, parts: EngineParts) -> None:
        super().__init__(engine_id, parts)
        self._ready: list[PromptProgress] = []
        self._running: list[PromptProgress] = []
        self._turns: dict[RequestId, asyncio.Task[FirstToken | HitLost]] = {}
        self._aborted: set[RequestId] = set()
        self._absences = Absences()
        self._late: dict[RequestId, NodeId] = {}
        """Turns of which bytes that were sent may still arrive, and where."""
        self._reads: TurnReads
        self._peak_resident_layers = 0
        self._batching = PrefillBatching(parts.config, parts.scheduling, parts.runner)

    async def connect(
        self,
        staging: StagingHandle,
        nodes: Mapping[NodeId, NodePeer],
        scheduler: SchedulerPeer,
        decode_engines: Mapping[EngineId, DecodePeer],
        regions: Mapping[NodeId, RegionHandle],
    ) -> None:
        """Join the cluster and begin to serve. `staging` is the own node's memory."""
        self._regions.update(regions)
        self._map(staging)
        self._reads = TurnReads(nodes, self._config.step_deadline_s, self._absences)
        self._scheduler = scheduler
        self._decode_engines = decode_engines
        self._loop.start()

    async def prefill(self, job: PrefillJob) -> FirstToken | HitLost:
        """Compute a placed prompt; returns when the decode engine has taken the turn over.

        A caller that goes away does not end the turn: its reads and its step would go on. `abort` does.
        """
        self._refuse_stale(job.placement)
        self._batching.refuse_too_long(job)
        request_id = job.placement.request_id
        turn = self._events.create_task(self._serve(job))
        self._turns[request_id] = turn
        turn.add_done_callback(lambda turn: self._forget(request_id, turn))
        return await asyncio.shield(turn)

    async def set_absent(self, absent: frozenset[str]) -> None:
        """These engines and nodes do not answer: wait for none of them."""
        self._absences.set(absent)

    async def abort(self, request_id: RequestId) -> frozenset[NodeId]:
        """End a turn; returns when no read, step or hand-over touches its slots any more.

        But on the nodes that are returned: they were to read for the turn and gave no answer, or bytes that
        were sent to them may still arrive.
        """
        turn = self._turns.get(request_id)
        if turn is not None:
            self._aborted.add(request_id)
            await self._reads.drop(request_id)
        await self._loop.call(lambda: self._drop(request_id), self._config.step_deadline_s)
        if turn is not None:
            await asyncio.wait([turn], timeout=self._config.step_deadline_s)
        if turn is not None and not turn.done():
            raise EngineFailed(f"{self._engine_id} could not end {request_id}")
        late = self._late.pop(request_id, None)
        return self._reads.unanswered_by(request_id) | (frozenset() if late is None else {late})

    async def let_go_of_all(self) -> frozenset[NodeId]:
        """End every turn; as `abort` for all of them."""
        unsafe = await asyncio.gather(*(self.abort(request_id) for request_id in list(self._turns)))
        return frozenset().union(*unsafe)

    async def peak_resident_layers(self) -> int:
        """Most layers of hit KV that were ever in HBM at once."""
        return self._peak_resident_layers

    async def figures(self) -> dict[str, float]:
        """What batches the engine has computed since the start, and how well it foresaw their times."""
        return self._batching.figures()

    # -- on the event loop ---------------------------------------------------------------------------

    async def _serve(self, job: PrefillJob) -> FirstToken | HitLost:
        started_s = time.monotonic()
        hit = await self._reads.load(job.placement)
        lost = hit.lost(job.placement)
        if lost:
            return await self._hit_lost(job, lost)
        self._stop_if_aborted(job.placement.request_id)
        read_s = time.monotonic() - started_s
        computed = await self._compute(job, hit)
        self._stop_if_aborted(job.placement.request_id)
        handing_s = time.monotonic()
        finish_reason = await self._hand_over(job, computed)
        await self._scheduler.prefilled(job.placement.request_id, hit.moved, self._batching.forward_times)
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

    async def _hit_lost(self, job: PrefillJob, lost: dict[int, LostBlock]) -> HitLost:
        """The first bad block ends the hit, and the attempt; the next one will not find those that failed."""
        await self._scheduler.hit_lost(job.placement.request_id, list(lost.values()))
        keys = tuple(block.key for block in lost.values())
        return HitLost(hit_tokens=min(lost) * self._layout.block_tokens, lost_keys=keys)

    async def _compute(self, job: PrefillJob, hit: LoadedHit) -> Computed:
        if self._failure is not None:
            raise EngineFailed(self._failure)
        now_s = time.monotonic()
        ready = PromptProgress(
            job=job,
            hit_slots=hit.own_slots,
            checksums=list(hit.checksums),
            done=self._events.create_future(),
            arrived_s=now_s,
            idle_since_s=now_s,
        )
        self._loop.post(lambda: self._ready.append(ready))
        try:
            async with asyncio.timeout(self._config.step_deadline_s):
                return await ready.done
        except TimeoutError:
            raise EngineFailed(
                f"{self._engine_id} did not compute {job.placement.request_id} within "
                f"{self._config.step_deadline_s} s"
            ) from None

    async def _hand_over(self, job: PrefillJob, computed: Computed) -> FinishReason | None:
        sampled, block_tokens = computed.sampled, self._layout.block_tokens
        stop = StopCondition(job.sampling, job.earlier_ids, self._decoder)
        finish_reason = stop.push(sampled.token_id)
        num_tail = job.prompt_tokens - len(job.keys) * block_tokens
        turn = HandOver(
            placement=job.placement,
            prompt_tokens=job.prompt_tokens,
            keys=job.keys,
            chain_root=job.chain_root,
            tail_parent=job.tail_parent,
            tail_ids=job.miss_ids[len(job.miss_ids) - num_tail :],
            slot_checksums=computed.slot_checksums,
            first_token=sampled.token_id,
            first_logprob=sampled.logprob,
            finish_reason=finish_reason,
            sampling=job.sampling,
            sample_id=job.sample_id,
            earlier_ids=job.earlier_ids,
        )
        engine_id = job.placement.decode_engine
        await self._absences.unless_absent(engine_id, self._decode_engines[engine_id].hand_over(turn))
        return finish_reason

    # -- on the engine loop --------------------------------------------------------------------------

    def _step(self) -> bool:
        chunks = self._batching.pick([ready.rest for ready in self._ready])
        if not chunks:
            return False
        batch = [(self._ready[chunk.index], chunk.new_tokens) for chunk in chunks]
        takes_all = len(batch) == len(self._ready) and all(ready.is_last(tokens) for ready, tokens in batch)
        if takes_all and self._more_may_come():
            time.sleep(_NAP_S)
            return True
        self._running = [ready for ready, _ in batch]
        picked = {chunk.index for chunk in chunks}
        self._ready = [ready for index, ready in enumerate(self._ready) if index not in picked]
        try:
            self._run(batch)
        except (TransferError, EngineFailed) as error:
            # The other end is at fault: these turns fail, the engine goes on.
            if isinstance(error, LateWrite):
                self._late.update(
                    (ready.job.placement.request_id, ready.job.placement.decode_node)
                    for ready in self._running
                )
            self._reject(self._running, f"{self._engine_id} could not move KV: {error}")
        self._running = []
        return True

    def _more_may_come(self) -> bool:
        if self._ready[0].begun:
            return False
        now_s = time.monotonic()
        return more_may_come(
            since_first_s=now_s - self._ready[0].arrived_s,
            since_last_s=now_s - self._ready[-1].arrived_s,
            num_on_their_way=len(self._reads),
            linger_s=self._config.burst_linger_s,
        )

    def _run(self, batch: list[tuple[PromptProgress, int]]) -> None:
        """Compute so many tokens of each prompt; those with more to come go on first in the next batch."""
        started_s = time.monotonic()
        rows = [ready.row(tokens) for ready, tokens in batch]
        shape = BatchShape(tuple(row.hit_tokens for row in rows), tuple(map(self._moved_tokens, rows)))
        trace = self._trace_of(batch)
        feed = self._open_feed(shape, batch, trace)
        ended = [index for index, (ready, tokens) in enumerate(batch) if ready.is_last(tokens)]
        try:
            logits = self._runner.prefill(rows, feed if trace is None else TracedFeed(feed, trace))
            specs = [self._spec(batch[index][0].job) for index in ended]
            sampled = dict(zip(ended, sample(logits[ended], specs), strict=True)) if ended else {}
        finally:
            feed.finish()
        ended_s = time.monotonic()
        if trace is not None:
            trace.add("forward", f"prefill of {len(rows)}", started_s, new_tokens=sum(shape.new_tokens))
        self._peak_resident_layers = max(self._peak_resident_layers, feed.peak_resident_layers)
        self._runner.counts.first += len(sampled)
        moving = PhaseSeconds(kv_load=feed.load_wait_s, kv_transfer=feed.fetch_wait_s + feed.send_wait_s)
        compute_s = ended_s - started_s - moving.total
        rests = [PromptRest(row.hit_tokens, len(row.token_ids)) for row in rows]
        self._batching.ran(rests, compute_s, num_cut=len(batch) - len(ended))
        for index, (ready, tokens) in enumerate(batch):
            waited = PhaseSeconds(queue=started_s - ready.idle_since_s, prefill=compute_s)
            ready.advance(tokens, feed.new_checksums(index), waited + moving, ended_s)
            if index in sampled:
                self._resolve(ready, Computed(sampled[index], tuple(ready.checksums), ready.phases))
        self._ready[:0] = [ready for index, (ready, _) in enumerate(batch) if index not in sampled]

    def _moved_tokens(self, row: PrefillRow) -> int:
        """New tokens whose KV goes to the decode node."""
        tokens = len(row.token_ids)
        if not self._runner.paged:
            return tokens
        return self._layout.num_blocks(tokens) * self._layout.block_tokens  # a hit ends with a block

    def _trace_of(self, batch: list[tuple[PromptProgress, int]]) -> BatchTrace | None:
        if not self._timeline.is_on:
            return None
        names = (ready.job.placement.request_id for ready, _ in batch)
        sampled = [name for name in names if self._timeline.samples(name)]
        return BatchTrace(self._timeline, ", ".join(sampled)) if sampled else None

    def _open_feed(
        self, shape: BatchShape, batch: list[tuple[PromptProgress, int]], trace: BatchTrace | None
    ) -> BatchFeed:
        regions = [self._regions[ready.job.placement.decode_node] for ready, _ in batch]
        return open_feed(
            self._traffic,
            self._runner,
            shape,
            [
                ready.feed_row(tokens, self._layout, region)
                for (ready, tokens), region in zip(batch, regions, strict=True)
            ],
            self._config,
            trace,
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

    def _resolve(self, ready: PromptProgress, computed: Computed) -> None:
        def set_result() -> None:
            if not ready.done.done():
                ready.done.set_result(computed)

        self._events.call_soon_threadsafe(set_result)

    def _fail_all(self, failure: str) -> None:
        self._failure = failure
        self._reject([*self._running, *self._ready], failure)

    def _reject(self, batch: list[PromptProgress], failure: str) -> None:
        def set_exceptions() -> None:
            for ready in batch:
                if not ready.done.done():
                    ready.done.set_exception(EngineFailed(failure))

        self._events.call_soon_threadsafe(set_exceptions)

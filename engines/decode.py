"""A decode engine: a continuous batch over a paged KV pool.

It never computes a prompt. A turn arrives with its prompt assembled in the node's staging memory; it is
verified, admitted when enough pool blocks are free, copied in beside the steps of what runs, and then decoded
with it.
When the pool runs out the youngest turn is preempted: its full blocks are stored, so its client sends it
round again and it goes on with the same tokens.

Four files share the work: this one owns the batch, engines.running_turn is a turn in it,
engines.persistence writes full blocks to the store beside decoding, engines.copier moves what goes into the
pool or out of it. The engine loop alone says which block of the pool is whose; no step touches a block that
a copy fills. Everything else runs on the event loop.

    waiting --admit--> copying ----> copied --join--> running --stop--> done
                          `--abort--> done               `----preempt---> done (PREEMPTED)
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from torch import Tensor

from engines.block_pool import BlockPool
from engines.copier import Copier
from engines.decode_trace import DecodeTrace
from engines.engine import Engine, EngineParts
from engines.errors import EngineFailed
from engines.model.runner import DecodeRow
from engines.peers import NodePeer, SchedulerPeer
from engines.persist_reserve import PersistReserve
from engines.persistence import Persistence
from engines.running_turn import RunningTurn, verify_prompt
from engines.sampling import Sampled, sample
from engines.scheduling.burst import more_may_come
from engines.stopping import StopCondition
from engines.types import (
    EngineId,
    FinishReason,
    GenerateResult,
    HandOver,
    NodeId,
    RequestId,
    SlotId,
)
from kvstore.keys import block_key
from kvstore.staging import StagingHandle

_NAP_S = 0.001
_LOOK_EVERY_S = 0.005
"""How soon whoever follows a turn hears of its next token."""


class DecodeEngine(Engine):
    """One GPU's (or CPU's) decode engine. Public methods run on one event loop."""

    def __init__(self, engine_id: EngineId, parts: EngineParts) -> None:
        super().__init__(engine_id, parts)
        config, runner = parts.config, parts.runner
        self._pool = BlockPool(max(1, config.decode_kv_bytes // self._layout.full_block_bytes))
        self._kv: Tensor = runner.make_pool(self._pool.num_blocks)
        self._waiting: deque[RunningTurn] = deque()
        self._copying: dict[RequestId, tuple[RunningTurn, Future[None]]] = {}
        self._copied: list[RunningTurn] = []
        """Turns that decode from the next step on; an idle engine waits for the rest of their burst."""
        self._running: list[RunningTurn] = []
        self._lacks_blocks = False
        """Whether a running turn waits for a block of the pool: then nobody else gets one."""
        self._results: dict[RequestId, asyncio.Future[GenerateResult]] = {}
        self._decoding: dict[RequestId, RunningTurn] = {}
        """Turns that were handed over and have not ended."""
        self._num_arriving = 0
        self._num_preempted = 0
        self._trace = DecodeTrace(self._timeline)

    async def connect(
        self,
        staging: StagingHandle,
        node: NodePeer,
        scheduler: SchedulerPeer,
        reserve: PersistReserve,
    ) -> None:
        """Join the cluster and begin to serve. `reserve` is this engine's own, for persisting."""
        self._map(staging)
        self._traffic.rows.keep([self._kv])
        self._copier = self._open_copier("copy-in")
        self._persistence = Persistence(
            self._traffic,
            node,
            scheduler,
            reserve,
            self._open_copier("copy-out"),
            run_on_loop=self._loop.post,
            deadline_s=self._config.step_deadline_s,
        )
        self._loop.start()

    def _open_copier(self, name: str) -> Copier:
        copier = Copier(f"{self._engine_id}-{name}", self._runner.device, self._loop.post)
        self._open.callback(copier.close)
        return copier

    async def kv_tokens(self) -> int:
        """Tokens the paged pool holds."""
        return self._pool.num_blocks * self._layout.block_tokens

    async def hand_over(self, turn: HandOver) -> None:
        """Take a prefilled turn: verify its prompt, begin to persist it, queue it for decoding.

        A turn that its first token ended is only persisted. Raises EngineFailed if the prompt's
        bytes are not what was sent.
        """
        self._refuse_stale(turn.placement)
        if self._failure is not None:
            raise EngineFailed(self._failure)
        decodes = turn.finish_reason is None
        self._num_arriving += decodes
        try:
            if not self._config.oracle:
                staging, paged = self._traffic.staging, self._runner.paged
                await asyncio.to_thread(verify_prompt, turn, self._layout, staging, paged=paged)
            await self._persistence.begin_prompt(turn, self._layout, waits_for_copy=decodes)
            if decodes:
                self._results[turn.placement.request_id] = self._events.create_future()
                stop = StopCondition(turn.sampling, turn.earlier_ids, self._decoder)
                running = RunningTurn(turn, stop, arrived_s=time.monotonic())
                self._decoding[running.request_id] = running
                self._loop.post(lambda: self._waiting.append(running))
        finally:
            self._num_arriving -= decodes

    async def generate(self, request_id: RequestId) -> GenerateResult:
        """The turn's result, once it has ended here. Deadlines are the caller's."""
        result = self._results.get(request_id)
        if result is None:
            raise EngineFailed(f"{self._engine_id} was never handed {request_id}")
        try:
            return await asyncio.shield(result)
        finally:
            if result.done():
                self._results.pop(request_id, None)

    async def generated(self, request_id: RequestId, seen: int, wait_s: float) -> array[int] | None:
        """Tokens after the first `seen`, as soon as there are some; none after `wait_s`, None once it has
        ended.

        The first one, which prefill sampled, counts.
        """
        give_up_s = time.monotonic() + wait_s
        while (running := self._decoding.get(request_id)) is not None:
            if len(running.token_ids) > seen or time.monotonic() >= give_up_s:
                return running.token_ids[seen:]
            await asyncio.sleep(_LOOK_EVERY_S)
        return None

    async def abort(self, request_id: RequestId) -> None:
        """End a turn; returns when no step, no copy and no write touches its slots any more."""
        self._decoding.pop(request_id, None)
        deadline_s = self._config.step_deadline_s
        copying = await self._loop.call(lambda: self._mark_aborted(request_id), deadline_s)
        await asyncio.gather(
            self._copy_ended(request_id, copying), self._persistence.settled(request_id, deadline_s)
        )
        result = self._results.pop(request_id, None)
        if result is not None and not result.done():
            result.cancel()

    async def let_go_of_all(self) -> frozenset[NodeId]:
        """End every turn; as `abort` for all of them, and no block is on its way to the store any more."""
        deadline_s = self._config.step_deadline_s
        turns = await self._loop.call(self._turns_here, deadline_s)
        await asyncio.gather(*(self.abort(request_id) for request_id in {*turns, *self._results}))
        if not await self._persistence.idle(deadline_s):
            raise EngineFailed(f"{self._engine_id} still stores blocks after {deadline_s} s")
        return frozenset()

    async def renew_reserve(self, reserve: PersistReserve) -> None:
        """These slots are the engine's own from now on, in place of those before; after `let_go_of_all`."""
        await self._loop.call(lambda: self._persistence.renew_reserve(reserve), self._config.step_deadline_s)

    async def figures(self) -> dict[str, float]:
        """What the engine holds right now, for metrics."""
        return {
            "running": len(self._running),
            "waiting": len(self._waiting) + len(self._copying) + len(self._copied),
            "free_blocks": self._pool.num_free,
            "preempted": self._num_preempted,
        }

    # -- on the event loop ---------------------------------------------------------------------------

    async def _copy_ended(self, request_id: RequestId, copying: Future[None] | None) -> None:
        if copying is None:
            return
        deadline_s = self._config.step_deadline_s
        _, unfinished = await asyncio.wait([asyncio.wrap_future(copying)], timeout=deadline_s)
        if unfinished:
            raise EngineFailed(f"{self._engine_id} still copies {request_id} in after {deadline_s} s")

    def _finish(self, running: RunningTurn, reason: FinishReason, ended_s: float) -> None:
        """On the event loop: answer once the index expects every block this turn will have stored."""
        self._decoding.pop(running.request_id, None)
        result = running.result(reason, ended_s)
        task = self._events.create_task(self._answer(running.request_id, result))
        self._persistence.keep(task)

    async def _answer(self, request_id: RequestId, result: GenerateResult) -> None:
        await self._persistence.expected(request_id)
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_result(result)

    # -- on the engine loop --------------------------------------------------------------------------

    def _step(self) -> bool:
        self._pool.give_back(self._persistence.copy_out(self._kv))
        self._admit()
        if self._more_may_come():
            time.sleep(_NAP_S)
            return True
        self._running += self._copied
        self._copied = []
        ready = self._grow()
        if ready and self._timeline.is_on:
            self._trace.follow([running.request_id for running in ready])
        for batch in self._batches(ready):
            self._decode(batch)
        return bool(ready) or self._persistence.copying

    def _more_may_come(self) -> bool:
        """Whether turns are coming one after another that should start together.

        Turns that run already wait for nobody.
        """
        if self._running or not self._copied:
            return False
        now_s = time.monotonic()
        return more_may_come(
            since_first_s=now_s - self._copied[0].copied_s,
            since_last_s=now_s - self._copied[-1].copied_s,
            num_on_their_way=self._num_arriving + len(self._copying),
            linger_s=self._config.burst_linger_s,
        )

    def _admit(self) -> None:
        """From the head of the queue, for as long as prompt and one more token fit; their copies begin."""
        while self._waiting and not self._lacks_blocks:
            if (
                len(self._copying) + len(self._copied) + len(self._running)
                >= self._config.decode_max_requests
            ):
                return
            running = self._waiting[0]
            table = self._pool.take(self._layout.num_blocks(running.position + 1))
            if table is None:
                return
            self._waiting.popleft()
            running.table = table
            running.admitted_s = time.monotonic()
            row, slots = running.row(), running.turn.placement.decode_slots
            copy_in = partial(self._copy_in, running.request_id, row, slots)
            copy = self._copier.copy(copy_in, partial(self._end_copy, running))
            self._copying[running.request_id] = (running, copy)

    def _end_copy(self, running: RunningTurn, copy: Future[None]) -> None:
        """The prompt lies in the pool, or its turn was aborted before; an engine that cannot copy fails."""
        if not copy.cancelled():
            copy.result()
        running.copied_s = time.monotonic()
        self._events.call_soon_threadsafe(self._persistence.prompt_copied, running.request_id)
        del self._copying[running.request_id]
        self._copied.append(running)
        if running.aborted:
            self._end(running, FinishReason.ABORTED)
        running.settled.set_result(None)

    def _grow(self) -> list[RunningTurn]:
        """Give every running turn a block for its next token; return those that have one.

        While there is none the youngest turn is preempted, unless blocks of ended turns come back by
        themselves as soon as they are stored, or turns that are younger still are being copied in: they
        come first, once they can.
        """
        self._lacks_blocks = False
        for running in list(self._running):
            while running in self._running and not self._has_room(running):
                taken = self._pool.take(1)
                if taken is not None:
                    running.table.extend(taken)
                elif self._persistence.blocks_coming_back or self._copying:
                    self._lacks_blocks = True
                    break
                else:
                    self._num_preempted += 1
                    self._end(self._running[-1], FinishReason.PREEMPTED)
        return [running for running in self._running if self._has_room(running)]

    def _has_room(self, running: RunningTurn) -> bool:
        return running.position < len(running.table) * self._layout.block_tokens

    def _batches(self, ready: list[RunningTurn]) -> list[list[RunningTurn]]:
        """The turns that are ready, in batches that may be padded together."""
        if self._runner.padding_exact:
            return [ready] if ready else []
        by_position: dict[int, list[RunningTurn]] = {}
        for running in ready:
            by_position.setdefault(running.position, []).append(running)
        return list(by_position.values())

    def _decode(self, batch: list[RunningTurn]) -> None:
        logits = self._runner.decode([running.row() for running in batch])
        sampled = sample(logits, [running.sample_spec(self._job_seed) for running in batch])
        now_s = time.monotonic()
        for running, token in zip(batch, sampled, strict=True):
            self._append(running, token, now_s)

    def _append(self, running: RunningTurn, token: Sampled, now_s: float) -> None:
        """The KV of the token just fed is in the pool; `token` is the next one."""
        running.tail_ids.append(running.token_ids[-1])
        running.position += 1
        if len(running.tail_ids) == self._layout.block_tokens:
            self._store_full_block(running)
        running.token_ids.append(token.token_id)
        running.logprobs.append(token.logprob)
        if running.second_s is None:
            running.second_s = now_s - running.arrived_s
        reason = running.stop.push(token.token_id)
        if reason is not None:
            self._end(running, reason)

    def _store_full_block(self, running: RunningTurn) -> None:
        key = block_key(running.parent, running.tail_ids)
        block = running.table[running.position // self._layout.block_tokens - 1]
        self._persistence.add_block(running.turn, key, running.parent, block)
        running.parent, running.tail_ids = key, array("i")

    def _end(self, running: RunningTurn, reason: FinishReason) -> None:
        (self._running if running in self._running else self._copied).remove(running)
        self._trace.end(running.request_id)
        busy = self._persistence.blocks_being_stored(running.request_id)
        self._pool.give_back([block for block in running.table if block not in busy])
        self._persistence.free_when_stored(running.request_id)
        self._events.call_soon_threadsafe(self._finish, running, reason, time.monotonic())

    def _turns_here(self) -> list[RequestId]:
        turns = [*self._waiting, *(turn for turn, _ in self._copying.values()), *self._copied, *self._running]
        return [turn.request_id for turn in turns]

    def _mark_aborted(self, request_id: RequestId) -> Future[None] | None:
        """End the turn, or have it end with its prompt's copy: then the future is done."""
        for running in list(self._waiting):
            if running.request_id == request_id:
                self._waiting.remove(running)
                self._events.call_soon_threadsafe(self._persistence.prompt_copied, request_id)
        for running in [*self._copied, *self._running]:
            if running.request_id == request_id:
                self._end(running, FinishReason.ABORTED)
        if request_id not in self._copying:
            return None
        running, copy = self._copying[request_id]
        running.aborted = True
        copy.cancel()
        return running.settled

    # -- on the copier's thread ----------------------------------------------------------------------

    def _copy_in(self, request_id: RequestId, row: DecodeRow, slots: Sequence[SlotId]) -> None:
        started_s = time.monotonic()
        self._traffic.load_blocks(self._kv, row.block_table[: len(slots)], slots)
        if self._timeline.samples(request_id):
            self._timeline.add("copy-in", request_id, started_s, blocks=len(slots))
        self._runner.begin_decode(row)

    def _fail_all(self, failure: str) -> None:
        self._failure = failure

        def set_exceptions() -> None:
            for future in self._results.values():
                if not future.done():
                    future.set_exception(EngineFailed(failure))

        self._events.call_soon_threadsafe(set_exceptions)

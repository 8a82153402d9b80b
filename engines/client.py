"""The engines' client: it takes one turn through placement, prefill and decode, and tries again if it must.

One per agent worker. A turn's attempts are told apart by their request ids; the random numbers are named
by the turn, so an attempt after a preemption or a dead engine goes on with the tokens the first would have
sampled. Every attempt ends with `finish` at the scheduler.
"""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from engines.absences import Absences
from engines.answered import answered
from engines.config import SchedulerConfig
from engines.context import Context
from engines.errors import EngineFailed, OlderKVLost, RequestRefused, StaleWeights, TurnFailed
from engines.peers import DecodePeer, PrefillPeer, SchedulerPeer
from engines.types import (
    NO_HINTS,
    EngineId,
    FinishReason,
    FirstToken,
    GenerateResult,
    HitLost,
    NodeId,
    OnPhase,
    PhaseSeconds,
    Placement,
    PrefillJob,
    RequestId,
    SamplingParams,
    TurnHints,
    TurnRequest,
    TurnResult,
    Weights,
)
from kvstore.keys import BlockKey, chain_root
from kvstore.layout import BlockLayout

OnTokens = Callable[["array[int]"], None]
"""Told all output tokens of a turn so far, whenever there are more; an attempt that failed may leave
fewer."""

_LISTEN_S = 60.0
"""One question to the scheduler for absent engines takes no longer."""
_TRY_AGAIN_S = 0.5
"""Between two tries to reach a scheduler that is not there."""
_TELL_DEADLINE_S = 10.0
"""For a message that nobody waits for."""
_FOLLOW_S = 5.0
"""One question to a decode engine for more tokens takes no longer."""


@dataclass(slots=True)
class _Turn:
    """One turn across its attempts."""

    request_id: RequestId
    context: Context
    sampling: SamplingParams
    on_phase: OnPhase
    started_s: float
    deadline_s: float
    hints: TurnHints
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    phases: PhaseSeconds = field(default_factory=PhaseSeconds)
    num_attempts: int = 0
    num_failures: int = 0
    failed_engines: set[EngineId] = field(default_factory=set)
    hit_tokens: int = 0
    recomputed_tokens: int = 0
    first_token_s: float | None = None
    second_token_s: float | None = None
    last_token_s: float = 0.0
    weights_version: int = 0
    num_renewed_blocks: int = 0
    """Blocks of the context that older weights had computed and that are to be made again."""
    renewed_tokens: int = 0

    def begin_anew(self) -> None:
        """The engines hold other weights than those that sampled what there is: it is not kept."""
        self.token_ids, self.logprobs = array("i"), array("f")
        self.first_token_s = self.second_token_s = None

    def left_s(self, now_s: float) -> float:
        return self.deadline_s - (now_s - self.started_s)


class EngineClient:
    """Runs turns on the engines. All methods belong to one event loop."""

    def __init__(
        self, parts: ClientParts, clock: Callable[[], float] = time.monotonic, name: str = ""
    ) -> None:
        """`name` is this process's alone among those that live; without one nobody ends its turns if it is
        lost."""
        self._name = f"{name}/{os.getpid()}" if name else ""
        self._scheduler: SchedulerPeer = parts.scheduler
        self._prefill_engines: Mapping[EngineId, PrefillPeer] = parts.prefill_engines
        self._decode_engines: Mapping[EngineId, DecodePeer] = parts.decode_engines
        self._config = parts.config
        self._layout = parts.layout
        self._weights = parts.weights
        self._abort_deadline_s = parts.abort_deadline_s
        self._keep_kv = parts.keep_kv
        self._clock = clock
        self._absences = Absences()
        self._listening: asyncio.Task[None] | None = None
        self._num_running = 0
        self._telling: set[asyncio.Future[None]] = set()
        self._followers: dict[RequestId, OnTokens] = {}

    @property
    def _mark(self) -> str:
        """Tells attempts of this process from those of one that was lost."""
        return f"@{self._name}" if self._name else ""

    def open_context(self) -> Context:
        """An empty context under the weights the engines hold."""
        return Context(self._root(), self._layout.block_tokens)

    async def run_turn(
        self,
        context: Context,
        request_id: RequestId,
        sampling: SamplingParams,
        deadline_s: float,
        on_phase: OnPhase = lambda phase: None,
        hints: TurnHints = NO_HINTS,
    ) -> TurnResult:
        """Generate after `context`, which stays as it is; `on_phase` hears what the turn now waits for.

        `hints` are for orders of the scheduler that look at more than when a turn came.

        Raises EngineError: RequestRefused or PlacementTimeout as they come, TurnFailed when all attempts
        failed or `deadline_s` has passed.
        """
        if not len(context):
            raise RequestRefused(f"{request_id} has an empty context; a turn needs a token to go on from")
        turn = _Turn(request_id, context, sampling, on_phase, self._clock(), deadline_s, hints)
        with self._listens():
            while True:
                finish_reason = await self._attempt(turn)
                if finish_reason not in (None, FinishReason.PREEMPTED):
                    return self._result(turn, finish_reason)

    @contextmanager
    def following(self, request_id: RequestId, on_tokens: OnTokens) -> Iterator[None]:
        """Inside, `on_tokens` hears of this turn's output tokens while it runs. The turn's result tells
        all."""
        self._followers[request_id] = on_tokens
        try:
            yield
        finally:
            del self._followers[request_id]

    @contextmanager
    def _listens(self) -> Iterator[None]:
        """Hear of absent engines for as long as a turn runs."""
        self._num_running += 1
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._listening.cancel()

    async def _listen(self) -> None:
        seen = -1
        while True:
            try:
                seen, absent = await self._scheduler.absent(seen, _LISTEN_S)
                self._absences.set(absent)
            except EngineFailed:  # another scheduler begins with other numbers
                seen = -1
                await asyncio.sleep(_TRY_AGAIN_S)

    @asynccontextmanager
    async def waiting(self, context: Context, request_id: RequestId) -> AsyncIterator[None]:
        """Inside, the agent of this turn waits for a tool: `context` may be read ahead (scheduler.prefetch).

        It holds up nobody: what cannot be told the scheduler costs only the reading ahead.
        """
        if not self._config.prefetch:
            yield
            return
        told = asyncio.ensure_future(
            self._tell(self._scheduler.begin_wait(request_id, context.keys, self._weights.version))
        )
        try:
            yield
        finally:
            ending = asyncio.ensure_future(self._end_wait(request_id, told))
            self._telling.add(ending)
            ending.add_done_callback(self._telling.discard)

    async def _end_wait(self, request_id: RequestId, told: asyncio.Future[None]) -> None:
        await told
        await self._tell(self._scheduler.end_wait(request_id))

    async def _tell(self, message: Awaitable[None]) -> None:
        with suppress(EngineFailed, TimeoutError):
            async with asyncio.timeout(_TELL_DEADLINE_S):
                await message

    # -- one attempt ---------------------------------------------------------------------------------

    async def _attempt(self, turn: _Turn) -> FinishReason | None:
        """Why the turn ended; None or PREEMPTED: try again."""
        turn.num_attempts += 1
        left_s = turn.left_s(self._clock())
        if left_s <= 0:
            raise TurnFailed(f"{turn.request_id} was not done within {turn.deadline_s:.1f} s")
        attempt_id = RequestId(f"{turn.request_id}#{turn.num_attempts}{self._mark}")
        placement: Placement | None = None
        resolved = False
        try:
            async with asyncio.timeout(left_s):
                placement = await self._place(turn, attempt_id, left_s)
                finish_reason = await self._serve(turn, placement)
            resolved = True
            return finish_reason
        except TimeoutError:
            raise TurnFailed(f"{turn.request_id} was not done within {turn.deadline_s:.1f} s") from None
        except EngineFailed as error:
            if placement is None:  # the scheduler is gone: its next one is asked, as long as there is time
                await asyncio.sleep(min(_TRY_AGAIN_S, max(0.0, turn.left_s(self._clock()))))
                return None
            turn.num_failures += 1
            engines = {placement.prefill_engine, placement.decode_engine}
            turn.failed_engines |= {e for e in engines if e in self._absences} or engines
            if turn.num_failures >= self._config.max_attempts:
                raise TurnFailed(
                    f"{turn.request_id} failed {turn.num_failures} times, the last time: {error}"
                ) from error
            return None
        finally:
            await asyncio.shield(self._finish(attempt_id, placement, resolved))

    async def _place(self, turn: _Turn, attempt_id: RequestId, left_s: float) -> Placement:
        turn.on_phase("queue")
        while True:
            self._name_blocks(turn)
            prompt, weights_id = self._prompt(turn), self._weights.weights_id
            request = TurnRequest(
                request_id=attempt_id,
                keys=prompt.keys,
                prompt_tokens=len(prompt),
                max_output_tokens=turn.sampling.max_tokens - len(turn.token_ids),
                weights_version=self._weights.version,
                deadline_s=min(left_s, self._config.place_deadline_s),
                failed_engines=frozenset(turn.failed_engines),
                group_id=turn.hints.group_id,
                remaining_tokens=turn.hints.remaining_tokens,
                client=self._name,
                kv_weights_id=prompt.kv_weights_id if prompt.kv_weights_id != weights_id else None,
                num_kept_blocks=prompt.num_kept_blocks,
            )
            try:
                placement = await self._scheduler.submit(request)
                break
            except StaleWeights:
                await self._learn_weights(request)
            except OlderKVLost as lost:
                turn.num_renewed_blocks = turn.context.num_kept_blocks
                turn.context.keep(lost.num_blocks, attempt_id)
        renewed = turn.num_renewed_blocks * self._layout.block_tokens - placement.hit_tokens
        turn.renewed_tokens, turn.num_renewed_blocks = turn.renewed_tokens + max(0, renewed), 0
        turn.phases += placement.waited
        turn.weights_version = placement.weights_version
        return placement

    async def _serve(self, turn: _Turn, placement: Placement) -> FinishReason | None:
        prompt = self._prompt(turn)
        job = PrefillJob(
            placement=placement,
            prompt_tokens=len(prompt),
            tail_parent=prompt.parent,
            miss_ids=prompt.token_ids[placement.hit_tokens :],
            keys=prompt.keys,
            chain_root=prompt.root,
            sampling=turn.sampling,
            sample_id=turn.request_id,
            earlier_ids=turn.token_ids[:],
        )
        turn.on_phase("prefill")
        prefill = self._prefill_engines[placement.prefill_engine].prefill(job)
        reply = await self._absences.unless_absent(placement.prefill_engine, prefill)
        if isinstance(reply, HitLost):
            return None
        self._count_prefill(turn, reply, len(prompt))
        if reply.finish_reason is not None:
            turn.token_ids.append(reply.token_id)
            turn.logprobs.append(reply.logprob)
            turn.last_token_s = self._clock()
            return reply.finish_reason
        handed_s = self._clock()
        turn.on_phase("decode")
        generate = self._decode_engines[placement.decode_engine].generate(placement.request_id)
        async with self._followed(turn, placement, reply.token_id):
            generated = await self._absences.unless_absent(placement.decode_engine, generate)
        self._count_decode(turn, generated, handed_s)
        return generated.finish_reason

    @asynccontextmanager
    async def _followed(self, turn: _Turn, placement: Placement, first_token: int) -> AsyncIterator[None]:
        """Inside, whoever follows the turn is told of its tokens, of which the decode engine has the
        first."""
        on_tokens = self._followers.get(turn.request_id)
        if on_tokens is None:
            yield
            return
        told = turn.token_ids + array("i", [first_token])
        on_tokens(told[:])
        asking = asyncio.create_task(self._follow(placement, told, on_tokens))
        try:
            yield
        finally:
            asking.cancel()

    async def _follow(self, placement: Placement, told: array[int], on_tokens: OnTokens) -> None:
        decode, seen = self._decode_engines[placement.decode_engine], 1
        with suppress(EngineFailed):  # that is for the turn itself to find out
            while (more := await decode.generated(placement.request_id, seen, _FOLLOW_S)) is not None:
                if more:
                    told += more
                    seen += len(more)
                    on_tokens(told[:])

    async def _finish(self, attempt_id: RequestId, placement: Placement | None, resolved: bool) -> None:
        """End the attempt at the scheduler; an attempt that broke is first called back everywhere.

        Where no placement came back, nobody was told of the slots it may have got.
        """
        if placement is None or resolved:
            finish = self._scheduler.finish(attempt_id)
        else:
            nodes = frozenset((placement.prefill_node, placement.decode_node))
            unsafe = await self._call_back(placement)
            finish = self._scheduler.finish(attempt_id, resolved=not unsafe, safe_nodes=nodes - unsafe)
        with suppress(EngineFailed):  # a scheduler that is gone knows of no attempt any more
            await answered("the scheduler", finish, self._abort_deadline_s)

    async def _call_back(self, placement: Placement) -> frozenset[NodeId]:
        """Nodes where somebody may still touch the attempt's slots, as he has not said that he does not.

        Prefill first: once it has answered, nothing more is handed over.
        """
        request_id, unsafe = placement.request_id, frozenset[NodeId]()
        prefill = self._prefill_engines[placement.prefill_engine]
        decode = self._decode_engines[placement.decode_engine]
        try:
            async with asyncio.timeout(self._abort_deadline_s):
                abort = prefill.abort(request_id)
                unsafe |= await self._absences.unless_absent(placement.prefill_engine, abort)
        except (EngineFailed, TimeoutError):
            unsafe |= {placement.prefill_node, placement.decode_node}
        try:
            async with asyncio.timeout(self._abort_deadline_s):
                await self._absences.unless_absent(placement.decode_engine, decode.abort(request_id))
        except (EngineFailed, TimeoutError):
            unsafe |= {placement.decode_node}
        return unsafe

    # -- bookkeeping ---------------------------------------------------------------------------------

    def _name_blocks(self, turn: _Turn) -> None:
        """Name the context's blocks under the weights that engines hold, as far as is known here.

        What older weights computed keeps its names if it is to be kept.
        """
        if turn.token_ids and self._weights.version != turn.weights_version:
            turn.begin_anew()
        context, num_computed = turn.context, turn.context.num_computed_blocks
        if context.weights == self._weights:
            return
        if self._keep_kv and num_computed:
            context.keep(num_computed, f"{turn.request_id}@{self._weights.version}")
        else:
            turn.num_renewed_blocks, context.num_computed = num_computed, 0
            context.reroot(self._root())
            context.kv_weights_id = self._weights.weights_id
        context.weights = self._weights

    async def _learn_weights(self, refused: TurnRequest) -> None:
        """Ask for the engines' weights, which are not those that `refused` names."""
        weights = await self._scheduler.weights()
        if weights.version == refused.weights_version:
            raise RequestRefused(f"{refused.request_id} is refused under the weights that engines hold")
        self._weights = weights

    def _root(self) -> BlockKey:
        return chain_root(self._weights.weights_id, self._layout.format)

    def _prompt(self, turn: _Turn) -> Context:
        """The context and what earlier attempts generated after it."""
        if not turn.token_ids:
            return turn.context
        return turn.context.extended(turn.token_ids)

    def _count_prefill(self, turn: _Turn, reply: FirstToken, prompt_tokens: int) -> None:
        turn.phases += reply.phases
        if turn.first_token_s is None:
            turn.first_token_s = self._clock()
            turn.hit_tokens = reply.hit_tokens
        else:
            turn.recomputed_tokens += prompt_tokens - reply.hit_tokens
            turn.second_token_s = turn.second_token_s or self._clock()

    def _count_decode(self, turn: _Turn, generated: GenerateResult, handed_s: float) -> None:
        turn.token_ids.extend(generated.token_ids)
        turn.logprobs.extend(generated.logprobs)
        turn.phases += generated.phases
        turn.last_token_s = self._clock()
        if turn.second_token_s is None and generated.second_token_s is not None:
            turn.second_token_s = handed_s + generated.second_token_s

    def _result(self, turn: _Turn, finish_reason: FinishReason) -> TurnResult:
        turn.context.num_computed = len(turn.context) + len(turn.token_ids) - 1  # but for the last token's
        duration_s = self._clock() - turn.started_s
        assert turn.first_token_s is not None
        ttst_s = None if turn.second_token_s is None else turn.second_token_s - turn.started_s
        gaps = len(turn.token_ids) - 1
        return TurnResult(
            token_ids=turn.token_ids,
            logprobs=turn.logprobs,
            weights_version=turn.weights_version,
            finish_reason=finish_reason,
            prompt_tokens=len(turn.context),
            hit_tokens=turn.hit_tokens,
            ttft_s=turn.first_token_s - turn.started_s,
            ttst_s=ttst_s,
            tpot_s=(turn.last_token_s - turn.first_token_s) / gaps if gaps else None,
            duration_s=duration_s,
            phases=turn.phases + PhaseSeconds(other=duration_s - turn.phases.total),
            num_attempts=turn.num_attempts,
            recomputed_tokens=turn.recomputed_tokens,
            renewed_tokens=turn.renewed_tokens,
            older_kv_tokens=turn.context.num_kept_blocks * self._layout.block_tokens,
        )


@dataclass(frozen=True, slots=True)
class ClientParts:
    """What an EngineClient in another process is made from; picklable if the proxies are."""

    scheduler: Any
    prefill_engines: Mapping[EngineId, Any]
    decode_engines: Mapping[EngineId, Any]
    config: SchedulerConfig
    layout: BlockLayout
    weights: Weights
    abort_deadline_s: float
    """Longest an engine may take to let go of a turn before its slots are set aside."""
    keep_kv: bool = False
    """Whether contexts keep their KV when the weights change."""

    def client(self, name: str = "") -> EngineClient:
        return EngineClient(self, name=name)

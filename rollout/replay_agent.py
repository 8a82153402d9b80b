"""The turn loop of a replay: one agent that plays one recorded session.

Each round appends what the trace appended and has exactly as many tokens generated, whatever they are; the
next round goes on from what was generated. A round that drops a part of the context begins a new Segment.
Between rounds the agent waits as long as its tools took, scaled.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engines.context import Context
from engines.types import (
    NO_HINTS,
    FinishReason,
    OnPhase,
    PhaseSeconds,
    RequestId,
    SamplingParams,
    TurnResult,
)
from rollout.agent_run import (
    AgentRun,
    Engines,
    Failure,
    OnRecord,
    Sample,
    Stopwatch,
    engine_errors,
    fill,
    no_record,
    play,
)
from rollout.limits import Limits
from rollout.replay_task import ReplayTask
from rollout.replay_tokens import TokenSource
from rollout.traces.session import Round
from rollout.types import Segment, StopReason, Trajectory

_SAMPLING = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class ReplaySetup:
    """What all agents of a replay share."""

    engines: Engines
    limits: Limits
    tokens: TokenSource
    tool_wait_scale: float
    """Waits are the trace's times this."""
    clock: Callable[[], float] = time.monotonic


async def run_replay(
    sample: Sample,
    setup: ReplaySetup,
    abort: asyncio.Event | None,
    on_phase: OnPhase,
    on_record: OnRecord = no_record,
) -> Trajectory:
    """Play the sample's session to its end, or until `abort` is set; what it has a history of is not
    played."""
    return await play(_ReplayRun(sample, setup, on_phase, on_record), abort)


async def prepare_history(task: ReplayTask, setup: ReplaySetup) -> int:
    """Have the engines compute and store the session's history; the tokens whose KV that made.

    One token is generated after it and thrown away. Raises EngineError if that fails.
    """
    if not task.session.history:
        return 0
    context = setup.engines.open_context()
    context.append(setup.tokens.spell(task.session.history))
    request_id = RequestId(f"history/{task.task_id}")
    deadline_s = setup.limits.turn_deadline_s
    sampling = replace(_SAMPLING, max_tokens=1)
    result = await setup.engines.run_turn(
        context, request_id, sampling, deadline_s, lambda phase: None, NO_HINTS
    )
    return result.prompt_tokens - result.hit_tokens


class _ReplayRun(AgentRun):
    """The trajectory of a recorded session played again."""

    def __init__(self, sample: Sample, setup: ReplaySetup, on_phase: OnPhase, on_record: OnRecord) -> None:
        super().__init__(sample, setup, None, on_phase, on_record)
        assert isinstance(sample.task, ReplayTask), sample
        self._session = sample.task.session
        self._tokens = setup.tokens
        self._tool_wait_scale = setup.tool_wait_scale

    async def play(self) -> StopReason:
        context = self._begin()
        num_played = len(self._turns)
        for index, each in enumerate(self._session.rounds[num_played:], start=num_played):
            context = self._append(context, each)
            if len(context) + each.output_tokens > self.limits.max_context_tokens:
                return StopReason.MAX_CONTEXT
            reason = await self._take_round(context, self._session.rounds[index:])
            if reason is not None:
                return reason
        return StopReason.DONE

    def _begin(self) -> Context:
        """The context before the first round that is left."""
        if not self._turns:
            return self._open(self._tokens.spell(self._session.history))
        with engine_errors():
            context = self._setup.engines.open_context()
        context.append(self._segments[-1].token_ids)
        return context

    async def _take_round(self, context: Context, rounds: Sequence[Round]) -> StopReason | None:
        """The first of `rounds`, which are all that are left; the context has what it appends."""
        each, after = rounds[0], rounds[1] if len(rounds) > 1 else None
        started_s = self._setup.clock()
        sampling = replace(_SAMPLING, max_tokens=each.output_tokens)
        remaining_tokens = sum(one.append_tokens + one.output_tokens for one in rounds)
        result = await self._generate(context, sampling, remaining_tokens)
        phases = fill(result.phases, self._setup.clock() - started_s)
        tool = Stopwatch(self._setup.clock)
        try:
            if result.finish_reason is FinishReason.ABORTED:
                return StopReason.ABORTED
            self._check(result, each)
            if after is not None:
                with tool:
                    await self._wait(each, context)
        finally:
            appended = 0 if after is None else after.append_tokens
            self._record(result, started_s, tool.seconds, appended, phases + PhaseSeconds(tool=tool.seconds))
        return None

    async def _wait(self, each: Round, context: Context) -> None:
        wait_s = each.tool_wait_s * self._tool_wait_scale
        if wait_s > 0:
            self._on_phase("tool")
            async with self._waiting(context):
                await asyncio.sleep(wait_s)

    def _check(self, result: TurnResult, each: Round) -> None:
        if len(result.token_ids) != each.output_tokens:
            raise Failure(
                StopReason.ENGINE_ERROR,
                f"the engines generated {len(result.token_ids)} tokens, the trace says {each.output_tokens}",
            )

    def _append(self, context: Context, each: Round) -> Context:
        """The context with what the round appends, after what it keeps."""
        if each.keep_tokens is not None and each.keep_tokens != len(context):
            kept = context.token_ids[: each.keep_tokens]
            self._segments.append(Segment())
            context = self._open(kept)
        self._append_given(context, self._tokens.spell(each.append))
        return context

    def _open(self, token_ids: array[int]) -> Context:
        with engine_errors():
            context = self._setup.engines.open_context()
        self._append_given(context, token_ids)
        return context

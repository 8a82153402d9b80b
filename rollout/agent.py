"""The turn loop: one agent playing one task to its end.

The model speaks, the environment answers, until the environment says done, a limit is reached or
something breaks. Whatever happens, one Trajectory comes back, with all that was sampled until then; only
a cancelled task and errors of our own pass through. A limit is a StopReason, a failure of the tool or the
engines is recorded on the trajectory.

It does not know which engines serve a turn, nor what the task is about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from engines.context import Context
from engines.errors import EngineError
from engines.types import FinishReason, OnPhase, PhaseSeconds, RequestId, SamplingParams, TurnResult
from rollout.environment import Environment, Step, make_environment
from rollout.limits import Limits, deadline, expire_on
from rollout.prompt_format import PromptFormat
from rollout.tasks import Task
from rollout.types import Segment, StopReason, Trajectory, Turn

Item = TypeVar("Item")


class Engines(Protocol):
    """Who runs the model's turns."""

    def open_context(self) -> Context:
        """An empty context of the current weights."""

    async def run_turn(
        self,
        context: Context,
        request_id: RequestId,
        sampling: SamplingParams,
        deadline_s: float,
        on_phase: OnPhase,
    ) -> TurnResult:
        """Generate after `context`, which is left as it is; EngineError if that fails by the deadline.

        Cancelling the call takes the request back.
        """


@dataclass(frozen=True, slots=True)
class Sample:
    """Which trajectory to make."""

    task: Task
    group_id: str
    sample_index: int
    request_prefix: str = ""
    """Put before the request ids; with it they are unique in the job."""

    @property
    def trajectory_id(self) -> str:
        """The same as its Trajectory's."""
        return f"{self.group_id}/{self.sample_index}"

    def request_id(self, turn: int) -> RequestId:
        return RequestId(f"{self.request_prefix}{self.group_id}/{self.sample_index}/{turn}")


@dataclass(frozen=True, slots=True)
class AgentSetup:
    """What all agents of a step share."""

    engines: Engines
    prompt_format: PromptFormat
    sampling: SamplingParams
    """Stop ids and stop strings are in addition to the prompt format's."""
    limits: Limits
    clock: Callable[[], float] = time.monotonic
    environment_of: Callable[[Task], Environment] = make_environment


async def run_agent(
    sample: Sample,
    setup: AgentSetup,
    *,
    step_started_s: float | None = None,
    abort: asyncio.Event | None = None,
    on_phase: OnPhase = lambda phase: None,
) -> Trajectory:
    """Play `sample` to its end; setting `abort` ends it at once, with what it has until then.

    `on_phase` hears what it now does or waits for, one of PHASES.

    `step_started_s` is the clock's reading when the step started; None: now.
    """
    run = _Run(sample, setup, step_started_s, on_phase)
    if abort is not None and abort.is_set():
        return run.trajectory(StopReason.ABORTED)
    try:
        async with asyncio.timeout(setup.limits.wall_time_s) as wall, expire_on(abort, wall):
            reason = await run.play()
        return run.trajectory(reason)
    except _Failure as failure:
        return run.trajectory(failure.reason, error=str(failure))
    except TimeoutError:
        if not wall.expired():
            raise
        aborted = abort is not None and abort.is_set()
        return run.trajectory(StopReason.ABORTED if aborted else StopReason.WALL_TIME)


class _Failure(Exception):
    """The environment or the engines broke; ends the trajectory and is recorded on it."""

    def __init__(self, reason: StopReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Run:
    """A trajectory in the making."""

    def __init__(
        self, sample: Sample, setup: AgentSetup, step_started_s: float | None, on_phase: OnPhase
    ) -> None:
        self._sample = sample
        self._setup = setup
        self._format = setup.prompt_format
        self._on_phase = on_phase
        self._sampling = replace(
            setup.sampling,
            stop_ids=_union(self._format.stop_ids, setup.sampling.stop_ids),
            stop_strings=_union(self._format.stop_strings, setup.sampling.stop_strings),
        )
        self._started_s = setup.clock()
        self._step_started_s = self._started_s if step_started_s is None else step_started_s
        self._segment = Segment()
        self._turns: list[Turn] = []
        self._reward = 0.0

    async def play(self) -> StopReason:
        with _environment_errors():
            environment = self._setup.environment_of(self._sample.task)
            opening = environment.reset()
        with _engine_errors():
            context = self._setup.engines.open_context()
        self._append_given(context, self._format.open(opening))
        reason: StopReason | None = None
        while reason is None:
            reason = await self._take_turn(environment, context)
        return reason

    def trajectory(self, reason: StopReason, error: str | None = None) -> Trajectory:
        duration_s = self._setup.clock() - self._started_s
        spent = sum((turn.phases for turn in self._turns), start=PhaseSeconds())
        return Trajectory(
            task_id=self._sample.task.task_id,
            group_id=self._sample.group_id,
            sample_index=self._sample.sample_index,
            segments=(self._segment,),
            turns=tuple(self._turns),
            reward=self._reward,
            stop_reason=reason,
            started_s=self._started_s - self._step_started_s,
            duration_s=duration_s,
            phases=_fill(spent, duration_s),
            error=error,
        )

    async def _take_turn(self, environment: Environment, context: Context) -> StopReason | None:
        """One turn; the reason to stop after it, or in place of it."""
        room_tokens = self._setup.limits.max_context_tokens - len(context)
        if room_tokens < 1:
            return StopReason.MAX_CONTEXT
        started_s = self._setup.clock()
        result = await self._generate(context, room_tokens)
        served_s = self._setup.clock() - started_s
        self._segment.append_sampled(result.token_ids, result.logprobs, result.weights_version)
        context.append(result.token_ids)
        num_before, tool = len(context), _Stopwatch(self._setup.clock)
        try:
            if result.finish_reason is FinishReason.ABORTED:
                return StopReason.ABORTED
            with tool:
                step = await self._ask(environment, result)
            return self._hear(step, result, context)
        finally:  # what was sampled is on record however the environment ends
            phases = _fill(result.phases, served_s) + PhaseSeconds(tool=tool.seconds)
            self._record(result, started_s, tool.seconds, len(context) - num_before, phases)

    async def _generate(self, context: Context, room_tokens: int) -> TurnResult:
        max_tokens = min(self._sampling.max_tokens, room_tokens)
        sampling = replace(self._sampling, max_tokens=max_tokens)
        request_id = self._sample.request_id(len(self._turns))
        deadline_s = self._setup.limits.turn_deadline_s
        with _engine_errors():
            late = f"the engines did not answer {request_id} within {deadline_s:g} s"
            async with deadline(deadline_s, _Failure(StopReason.ENGINE_ERROR, late)):
                return await self._setup.engines.run_turn(
                    context, request_id, sampling, deadline_s, self._on_phase
                )

    async def _ask(self, environment: Environment, result: TurnResult) -> Step:
        self._on_phase("tool")
        timeout_s = self._setup.limits.tool_timeout_s
        said = self._format.text(result.token_ids)
        late = f"the environment did not answer within {timeout_s:g} s"
        async with deadline(timeout_s, _Failure(StopReason.TOOL_ERROR, late)):
            with _environment_errors():
                return await environment.step(said)

    def _hear(self, step: Step, result: TurnResult, context: Context) -> StopReason | None:
        """Take in the environment's answer; the reason to stop now, if there is one."""
        self._reward += step.reward
        limits = self._setup.limits
        if step.done or step.reply is None:
            return self._reason_done(result)
        if len(self._turns) + 1 >= limits.max_turns:
            return StopReason.MAX_TURNS
        reply_ids = self._format.reply(step.reply, ended=self._format.ended(result.token_ids))
        if len(context) + len(reply_ids) >= limits.max_context_tokens:
            return StopReason.MAX_CONTEXT
        self._append_given(context, reply_ids)
        return None

    def _reason_done(self, result: TurnResult) -> StopReason:
        if result.finish_reason is not FinishReason.LENGTH:
            return StopReason.DONE
        cut_by_sampling = len(result.token_ids) >= self._sampling.max_tokens
        return StopReason.MAX_TOKENS if cut_by_sampling else StopReason.MAX_CONTEXT

    def _append_given(self, context: Context, token_ids: Sequence[int]) -> None:
        self._segment.append_given(token_ids)
        context.append(token_ids)

    def _record(
        self,
        result: TurnResult,
        started_s: float,
        tool_s: float,
        tool_tokens: int,
        phases: PhaseSeconds,
    ) -> None:
        turn = Turn(
            segment=0,
            prompt_tokens=result.prompt_tokens,
            hit_tokens=result.hit_tokens,
            output_tokens=len(result.token_ids),
            tool_tokens=tool_tokens,
            finish_reason=result.finish_reason,
            weights_version=result.weights_version,
            started_s=started_s - self._started_s,
            ttft_s=result.ttft_s,
            ttst_s=result.ttst_s,
            tpot_s=result.tpot_s,
            tool_s=tool_s,
            phases=_fill(phases, self._setup.clock() - started_s),
            recomputed_tokens=result.recomputed_tokens,
            num_attempts=result.num_attempts,
        )
        self._turns.append(turn)


class _Stopwatch:
    """Seconds spent inside its block, also when the block is left by an exception."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._entered_s = self._clock()

    def __exit__(self, *raised: object) -> None:
        self.seconds = self._clock() - self._entered_s


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise _Failure(StopReason.ENGINE_ERROR, _one_line(error)) from error


@contextmanager
def _environment_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a task is other people's code: what it raises is data
        raise _Failure(StopReason.TOOL_ERROR, _one_line(error)) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _fill(phases: PhaseSeconds, duration_s: float) -> PhaseSeconds:
    """The phases, made to sum to `duration_s`: what is missing goes to `other`.

    Another process's clock may have measured more than ours; then all are shortened alike.
    """
    missing_s = duration_s - phases.total
    if missing_s >= 0:
        return phases + PhaseSeconds(other=missing_s)
    share = duration_s / phases.total
    return PhaseSeconds(*(seconds * share for seconds in phases.values()))


def _union(first: tuple[Item, ...], second: tuple[Item, ...]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys((*first, *second)))

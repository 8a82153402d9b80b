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
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from engines.context import Context
from engines.types import FinishReason, OnPhase, PhaseSeconds, SamplingParams, TurnResult
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
    one_line,
    play,
)
from rollout.environment import Environment, Reply, Step
from rollout.expected_lengths import ExpectedLengths
from rollout.limits import Limits, deadline
from rollout.prompt_format import PromptFormat
from rollout.tasks import Task
from rollout.types import Outcome, StopReason, Trajectory

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class AgentSetup:
    """What all agents of a step share."""

    engines: Engines
    prompt_format: PromptFormat
    sampling: SamplingParams
    """Stop ids and stop strings are in addition to the prompt format's."""
    limits: Limits
    environment_of: Callable[[Task], Environment]
    clock: Callable[[], float] = time.monotonic
    lengths: ExpectedLengths = field(default_factory=ExpectedLengths)
    """Of trajectories that ended before, in earlier steps too."""


async def run_agent(
    sample: Sample,
    setup: AgentSetup,
    *,
    step_started_s: float | None = None,
    abort: asyncio.Event | None = None,
    on_phase: OnPhase = lambda phase: None,
    on_record: OnRecord = no_record,
) -> Trajectory:
    """Play `sample` to its end; setting `abort` ends it at once, with what it has until then.

    `on_phase` hears what it now does or waits for, one of PHASES; `on_record` hears of finished turns.

    `step_started_s` is the clock's reading when the step started; None: now.
    """
    trajectory = await play(_Run(sample, setup, step_started_s, on_phase, on_record), abort)
    if trajectory.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED) and (
        trajectory.stop_reason is not StopReason.ABORTED
    ):
        setup.lengths.note(trajectory.task_id, trajectory.num_tokens)
    return trajectory


class _Run(AgentRun):
    """The trajectory of an agent that talks with an environment."""

    def __init__(
        self,
        sample: Sample,
        setup: AgentSetup,
        step_started_s: float | None,
        on_phase: OnPhase,
        on_record: OnRecord,
    ) -> None:
        super().__init__(sample, setup, step_started_s, on_phase, on_record)
        self._environment_of = setup.environment_of
        self._lengths = setup.lengths
        self._format = setup.prompt_format
        self._sampling = replace(
            setup.sampling,
            stop_ids=_union(self._format.stop_ids, setup.sampling.stop_ids),
            stop_strings=_union(self._format.stop_strings, setup.sampling.stop_strings),
        )

    @property
    def _task(self) -> Task:
        assert isinstance(self._sample.task, Task), self._sample
        return self._sample.task

    async def play(self) -> StopReason:
        if self._turns:
            async with self._environment() as (environment, opening):
                if await self._hear_again(environment, opening):
                    return await self._converse(environment, opening)
            self._forget()
        async with self._environment() as (environment, opening):
            return await self._converse(environment, opening)

    async def _converse(self, environment: Environment, opening: Sequence[int]) -> StopReason:
        with engine_errors():
            context = self._setup.engines.open_context()
        if self._turns:
            context.append(self._segments[-1].token_ids)
        else:
            self._append_given(context, opening)
        reason: StopReason | None = None
        while reason is None:
            reason = await self._take_turn(environment, context)
        return reason

    @asynccontextmanager
    async def _environment(self) -> AsyncIterator[tuple[Environment, Sequence[int]]]:
        """A fresh one, and the ids of its opening conversation; what closing it raises changes nothing."""
        with _environment_errors():
            environment = self._environment_of(self._task)
        try:
            async with self._environment_deadline("begin"):
                opening = await environment.reset()
            yield environment, self._format.open(opening.messages, opening.tools)
        finally:
            with suppress(Failure):
                async with self._environment_deadline("close"):
                    await environment.close()

    async def _hear_again(self, environment: Environment, opening: Sequence[int]) -> bool:
        """Bring a fresh environment to where the history ends, by saying to it what the model said.

        False if it answers otherwise than it did: then nobody knows what it has done, and the trajectory must
        begin anew.
        """
        if list(self._segments[0].token_ids[: self._turns[0].prompt_tokens]) != list(opening):
            return False
        for turn in self._turns:
            token_ids = self._segments[turn.segment].token_ids
            said, answered = turn.prompt_tokens, turn.prompt_tokens + turn.output_tokens
            with suppress(Failure):
                step = await self._step(environment, token_ids[said:answered])
                if not step.done and step.reply is not None:
                    reply_ids = self._reply_ids(step.reply, token_ids[said:answered])
                    if list(token_ids[answered : answered + turn.tool_tokens]) == list(reply_ids):
                        self._reward += step.reward
                        continue
            return False
        return True

    async def _take_turn(self, environment: Environment, context: Context) -> StopReason | None:
        """One turn; the reason to stop after it, or in place of it."""
        room_tokens = self.limits.max_context_tokens - len(context)
        if room_tokens < 1:
            return StopReason.MAX_CONTEXT
        started_s = self._setup.clock()
        max_tokens = min(self._sampling.max_tokens, room_tokens)
        remaining_tokens = self._lengths.remaining(
            self._task.task_id, len(context), self.limits.max_context_tokens
        )
        result = await self._generate(
            context, replace(self._sampling, max_tokens=max_tokens), remaining_tokens
        )
        served_s = self._setup.clock() - started_s
        num_before, tool = len(context), Stopwatch(self._setup.clock)
        try:
            if result.finish_reason is FinishReason.ABORTED:
                return StopReason.ABORTED
            with tool:
                async with self._waiting(context):
                    step = await self._step(environment, result.token_ids)
            return self._hear(step, result, context)
        finally:  # what was sampled is on record however the environment ends
            phases = fill(result.phases, served_s) + PhaseSeconds(tool=tool.seconds)
            self._record(result, started_s, tool.seconds, len(context) - num_before, phases)

    async def _step(self, environment: Environment, token_ids: array[int]) -> Step:
        """The environment's answer to what the model said."""
        self._on_phase("tool")
        said = self._format.text(token_ids)
        async with self._environment_deadline("answer"):
            return await environment.step(said)

    @asynccontextmanager
    async def _environment_deadline(self, what: str) -> AsyncIterator[None]:
        timeout_s = self.limits.tool_timeout_s
        late = f"the environment did not {what} within {timeout_s:g} s"
        async with deadline(timeout_s, Failure(StopReason.TOOL_ERROR, late)):
            with _environment_errors():
                yield

    def _hear(self, step: Step, result: TurnResult, context: Context) -> StopReason | None:
        """Take in the environment's answer; the reason to stop now, if there is one."""
        self._reward += step.reward
        limits = self.limits
        if step.done or step.reply is None:
            return self._reason_done(result)
        if len(self._turns) + 1 >= limits.max_turns:
            return StopReason.MAX_TURNS
        reply_ids = self._reply_ids(step.reply, result.token_ids)
        if len(context) + len(reply_ids) >= limits.max_context_tokens:
            return StopReason.MAX_CONTEXT
        self._append_given(context, reply_ids)
        return None

    def _reply_ids(self, reply: Reply, said_ids: array[int]) -> Sequence[int]:
        """What the context gains by `reply` to what the model said."""
        return self._format.reply(reply, ended=self._format.ended(said_ids))

    def _reason_done(self, result: TurnResult) -> StopReason:
        if result.finish_reason is not FinishReason.LENGTH:
            return StopReason.DONE
        cut_by_sampling = len(result.token_ids) >= self._sampling.max_tokens
        return StopReason.MAX_TOKENS if cut_by_sampling else StopReason.MAX_CONTEXT


@contextmanager
def _environment_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a task is other people's code: what it raises is data
        raise Failure(StopReason.TOOL_ERROR, one_line(error)) from error


def _union(first: tuple[Item, ...], second: tuple[Item, ...]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys((*first, *second)))

"""A trajectory in the making: what every kind of agent shares, whoever decides what is said next.

It takes turns at the engines and writes down what was given, sampled and timed; a limit or a failure ends it
as a Trajectory with one StopReason. What the agent says between turns is its subclass's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from engines.context import Context
from engines.errors import EngineError
from engines.types import OnPhase, PhaseSeconds, RequestId, SamplingParams, TurnHints, TurnResult
from rollout.history import History
from rollout.journal_record import Record, SegmentTail, TrajectoryEnded, TurnEnded, writable
from rollout.limits import Limits, deadline, expire_on
from rollout.replay_task import ReplayTask
from rollout.tasks import Task
from rollout.types import Segment, StopReason, Trajectory, Turn

OnRecord = Callable[[Record], None]
"""Hears of each finished turn, and of the end."""


def no_record(record: Record) -> None:
    """Nobody keeps it."""


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
        hints: TurnHints,
    ) -> TurnResult:
        """Generate after `context`, which is left as it is; EngineError if that fails by the deadline.

        Cancelling the call takes the request back.
        """

    def waiting(self, context: Context, request_id: RequestId) -> AbstractAsyncContextManager[None]:
        """Inside, the agent of this turn waits for a tool, and `context` is what it may go on from."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Which trajectory to make."""

    task: Task | ReplayTask
    group_id: str
    sample_index: int
    request_prefix: str = ""
    """Put before the request ids; with it they are unique in the job."""
    start_after_s: float = 0.0
    """When it starts, after its step does."""
    started_s: float = 0.0
    """When it did, on the step's clock: the controller says so."""
    attempt: int = 0
    """Times it was played before and failed."""
    history: History | None = None
    """What it had when its run was cut off; None: it begins."""

    @property
    def trajectory_id(self) -> str:
        """The same as its Trajectory's."""
        return f"{self.group_id}/{self.sample_index}"

    def request_id(self, turn: int) -> RequestId:
        again = f"~{self.attempt}" if self.attempt else ""
        return RequestId(f"{self.request_prefix}{self.group_id}/{self.sample_index}{again}/{turn}")


class RunSetup(Protocol):
    """What all agents of a step share, whatever they do."""

    @property
    def engines(self) -> Engines: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def clock(self) -> Callable[[], float]: ...


async def play(run: AgentRun, abort: asyncio.Event | None = None) -> Trajectory:
    """Play `run` to its end; setting `abort` ends it at once, with what it has until then."""
    if abort is not None and abort.is_set():
        return run.end(StopReason.ABORTED)
    try:
        left_s = run.limits.wall_time_s - run.elapsed_s
        async with asyncio.timeout(left_s) as wall, expire_on(abort, wall):
            reason = await run.play()
        return run.end(reason)
    except Failure as failure:
        return run.end(failure.reason, error=str(failure))
    except TimeoutError:
        if not wall.expired():
            raise
        aborted = abort is not None and abort.is_set()
        return run.end(StopReason.ABORTED if aborted else StopReason.WALL_TIME)


class Failure(Exception):
    """The environment or the engines broke; ends the trajectory and is recorded on it."""

    def __init__(self, reason: StopReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class AgentRun:
    """One trajectory; a subclass says what its turns are."""

    def __init__(
        self,
        sample: Sample,
        setup: RunSetup,
        step_started_s: float | None,
        on_phase: OnPhase,
        on_record: OnRecord = no_record,
    ) -> None:
        self._sample = sample
        self._setup = setup
        self._on_phase = on_phase
        self._on_record = on_record
        self._started_s = setup.clock()
        self._forget()
        if sample.history is not None:
            self._take_up(sample.history)
        self._step_started_s = self._started_s if step_started_s is None else step_started_s

    @property
    def limits(self) -> Limits:
        return self._setup.limits

    @property
    def elapsed_s(self) -> float:
        """Since it started; time between a kill and the resumption is none of it."""
        return self._setup.clock() - self._started_s

    async def play(self) -> StopReason:
        """Take turns until there is a reason to stop."""
        raise NotImplementedError

    def end(self, reason: StopReason, error: str | None = None) -> Trajectory:
        """It stops here. Ends that it did not come to by itself are not put on record: a resumed run goes
        on."""
        trajectory, sample = self._trajectory(reason, error), self._sample
        if reason in (StopReason.ABORTED, StopReason.ENGINE_ERROR):
            return trajectory
        self._on_record(
            TrajectoryEnded(
                trajectory_id=writable(sample.trajectory_id),
                task_id=writable(trajectory.task_id),
                group_id=writable(trajectory.group_id),
                sample_index=sample.sample_index,
                attempt=sample.attempt,
                num_turns=len(trajectory.turns),
                started_s=sample.started_s,
                duration_s=trajectory.duration_s,
                tails=self._new_tails(),
                phases=trajectory.phases,
                reward=trajectory.reward,
                stop_reason=reason,
                error=None if error is None else writable(error),
            )
        )
        return trajectory

    def _forget(self) -> None:
        """Nothing has been said yet."""
        self._segments = [Segment()]
        self._turns: list[Turn] = []
        self._reward = 0.0
        self._recorded = [0]
        """Tokens of each segment that are on record."""

    def _take_up(self, history: History) -> None:
        """Go on where a run was cut off, on the same clock."""
        self._segments = list(history.segments)
        self._turns = list(history.turns)
        self._recorded = [len(segment) for segment in self._segments]
        self._started_s -= history.elapsed_s

    def _new_tails(self) -> tuple[SegmentTail, ...]:
        """What the segments gained since the last record."""
        self._recorded += [0] * (len(self._segments) - len(self._recorded))
        tails = tuple(
            SegmentTail.of(index, segment, start)
            for index, (segment, start) in enumerate(zip(self._segments, self._recorded, strict=True))
            if start < len(segment)
        )
        self._recorded = [len(segment) for segment in self._segments]
        return tails

    def _trajectory(self, reason: StopReason, error: str | None) -> Trajectory:
        duration_s = self.elapsed_s
        spent = sum((turn.phases for turn in self._turns), start=PhaseSeconds())
        return Trajectory(
            task_id=self._sample.task.task_id,
            group_id=self._sample.group_id,
            sample_index=self._sample.sample_index,
            segments=tuple(self._segments),
            turns=tuple(self._turns),
            reward=self._reward,
            stop_reason=reason,
            started_s=self._started_s - self._step_started_s,
            duration_s=duration_s,
            phases=fill(spent, duration_s),
            error=error,
        )

    async def _generate(
        self, context: Context, sampling: SamplingParams, remaining_tokens: int | None
    ) -> TurnResult:
        """One model call; what it sampled joins the context and the record.

        `remaining_tokens` as in TurnHints.
        """
        request_id = self._sample.request_id(len(self._turns))
        deadline_s = self._setup.limits.turn_deadline_s
        hints = TurnHints(self._sample.group_id, remaining_tokens)
        with engine_errors():
            late = f"the engines did not answer {request_id} within {deadline_s:g} s"
            async with deadline(deadline_s, Failure(StopReason.ENGINE_ERROR, late)):
                result = await self._setup.engines.run_turn(
                    context, request_id, sampling, deadline_s, self._on_phase, hints
                )
        self._segments[-1].append_sampled(result.token_ids, result.logprobs, result.weights_version)
        context.append(result.token_ids)
        return result

    def _waiting(self, context: Context) -> AbstractAsyncContextManager[None]:
        """Inside, the agent waits for its tool, after the turn it took last."""
        return self._setup.engines.waiting(context, self._sample.request_id(len(self._turns)))

    def _append_given(self, context: Context, token_ids: Sequence[int]) -> None:
        self._segments[-1].append_given(token_ids)
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
            segment=len(self._segments) - 1,
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
            phases=fill(phases, self._setup.clock() - started_s),
            recomputed_tokens=result.recomputed_tokens,
            num_attempts=result.num_attempts,
            renewed_tokens=result.renewed_tokens,
            older_kv_tokens=result.older_kv_tokens,
        )
        self._turns.append(turn)
        self._on_record(
            TurnEnded(
                trajectory_id=writable(self._sample.trajectory_id),
                attempt=self._sample.attempt,
                index=len(self._turns) - 1,
                started_s=self._sample.started_s,
                elapsed_s=self.elapsed_s,
                tails=self._new_tails(),
                turn=turn,
            )
        )


class Stopwatch:
    """Seconds spent inside its block, also when the block is left by an exception."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._entered_s = self._clock()

    def __exit__(self, *raised: object) -> None:
        self.seconds = self._clock() - self._entered_s


@contextmanager
def engine_errors() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise Failure(StopReason.ENGINE_ERROR, one_line(error)) from error


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def fill(phases: PhaseSeconds, duration_s: float) -> PhaseSeconds:
    """The phases, made to sum to `duration_s`: what is missing goes to `other`.

    Another process's clock may have measured more than ours; then all are shortened alike.
    """
    missing_s = duration_s - phases.total
    if missing_s >= 0:
        return phases + PhaseSeconds(other=missing_s)
    share = duration_s / phases.total
    return PhaseSeconds(*(seconds * share for seconds in phases.values()))

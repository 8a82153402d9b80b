"""The turn loop: what a trajectory holds, and each way it can end.

The engines and the environment are scripted; the scripted engines write down every call. Tokens are
characters: `;` ends a turn.
"""

from __future__ import annotations

import asyncio
import pickle
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from engines.context import Context
from engines.errors import EngineError
from engines.types import (
    FinishReason,
    OnPhase,
    PhaseSeconds,
    RequestId,
    SamplingParams,
    TurnHints,
    TurnResult,
)
from kvstore.keys import BlockKey
from rollout.agent import AgentSetup, Sample, run_agent
from rollout.chain_arithmetic import ChainArithmetic
from rollout.environment import Environment, Message, Opening, Reply, Step, ToolSchema
from rollout.expected_lengths import ExpectedLengths
from rollout.limits import Limits
from rollout.tasks import Task
from rollout.types import NO_VERSION, Outcome, StopReason, Trajectory

TASK = Task("sum", "Q23*47-5?", "1076", "chain_arithmetic")
SAMPLE = Sample(TASK, group_id="0/sum", sample_index=2, request_prefix="job/")
LIMITS = Limits(
    max_turns=5, max_context_tokens=100, wall_time_s=20.0, turn_deadline_s=10.0, tool_timeout_s=10.0
)
SAMPLING = SamplingParams(max_tokens=16, temperature=0.7, stop_ids=(7,), stop_strings=("!",))
PHASES = PhaseSeconds(queue=0.5, kv_load=0.25, prefill=1.0, decode=2.0)
GIVEN_UP = ("A0;",)
GIVEN = ("C23*47;", "A1076;")


class CharFormat:
    """One token a character."""

    stop_ids = (ord(";"),)
    stop_strings = ("?",)

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        return ids_of("".join(message.content for message in messages))

    def ended(self, token_ids: array[int]) -> bool:
        return token_ids[-1] == ord(";")

    def reply(self, reply: Reply, *, ended: bool) -> list[int]:
        text = reply if isinstance(reply, str) else "".join(message.content for message in reply)
        return ids_of(text if ended else ";" + text)

    def text(self, token_ids: array[int]) -> str:
        return text_of(token_ids).removesuffix(";")


class FakeClock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class ScriptedEngines:
    """Says its lines in order, one weights version later each turn, and records what it was asked."""

    def __init__(
        self,
        *lines: str | BaseException | Callable[[], Awaitable[str]],
        clock: FakeClock | None = None,
        takes_s: float = 4.0,
        phases: PhaseSeconds = PHASES,
    ) -> None:
        self._lines = list(lines)
        self._clock = clock
        self._takes_s = takes_s
        self._phases = phases
        self.contexts: list[Context] = []
        self.prompts: list[str] = []
        self.request_ids: list[RequestId] = []
        self.samplings: list[SamplingParams] = []
        self.deadlines_s: list[float] = []
        self.hints: list[TurnHints] = []
        self.waits: list[tuple[RequestId, int] | None] = []
        """After which turn and how many tokens each wait began; None: it ended."""

    def open_context(self) -> Context:
        self.contexts.append(Context(BlockKey(bytes(16)), block_tokens=4))
        return self.contexts[-1]

    @asynccontextmanager
    async def waiting(self, context: Context, request_id: RequestId) -> AsyncIterator[None]:
        self.waits.append((request_id, len(context)))
        yield
        self.waits.append(None)

    async def run_turn(
        self,
        context: Context,
        request_id: RequestId,
        sampling: SamplingParams,
        deadline_s: float,
        on_phase: OnPhase,
        hints: TurnHints,
    ) -> TurnResult:
        on_phase("decode")
        self.prompts.append(text_of(context.token_ids))
        self.request_ids.append(request_id)
        self.samplings.append(sampling)
        self.deadlines_s.append(deadline_s)
        self.hints.append(hints)
        line = self._lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        said = line if isinstance(line, str) else await line()
        if self._clock is not None:
            self._clock.now_s += self._takes_s
        return self._result(len(context), said, sampling)

    def _result(self, prompt_tokens: int, said: str, sampling: SamplingParams) -> TurnResult:
        cut = said[: sampling.max_tokens]
        ended = cut.endswith((";", "!"))
        return TurnResult(
            token_ids=array("i", ids_of(cut)),
            logprobs=array("f", [-0.5 * (place + 1) for place in range(len(cut))]),
            weights_version=len(self.prompts),
            finish_reason=FinishReason.STOP_ID if ended else FinishReason.LENGTH,
            prompt_tokens=prompt_tokens,
            hit_tokens=prompt_tokens // 4 * 4,
            ttft_s=1.5,
            ttst_s=1.6,
            tpot_s=0.1,
            duration_s=self._phases.total,
            phases=self._phases,
            recomputed_tokens=3,
            num_attempts=2,
        )


class ScriptedEnvironment:
    """Answers with its steps in order; an exception among them is raised."""

    def __init__(
        self,
        *steps: Step | Exception,
        opening: str | Exception = "Q?",
        close_error: Exception | None = None,
    ) -> None:
        self._steps = list(steps)
        self._opening = opening
        self._close_error = close_error
        self.heard: list[str] = []
        self.closed = 0

    async def reset(self) -> Opening:
        if isinstance(self._opening, Exception):
            raise self._opening
        return Opening((Message("user", self._opening),))

    async def step(self, text: str) -> Step:
        self.heard.append(text)
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def close(self) -> None:
        self.closed += 1
        if self._close_error is not None:
            raise self._close_error


class HangingEnvironment(ScriptedEnvironment):
    async def step(self, text: str) -> Step:
        return await hang()


class SlowEnvironment(ChainArithmetic):
    """Takes two seconds of the fake clock for each answer."""

    def __init__(self, task: Task, clock: FakeClock) -> None:
        super().__init__(task)
        self._clock = clock

    async def step(self, text: str) -> Step:
        self._clock.now_s += 2.0
        return await super().step(text)


def ids_of(text: str) -> list[int]:
    return [ord(character) for character in text]


def text_of(token_ids: array[int]) -> str:
    return "".join(chr(token_id) for token_id in token_ids)


async def hang() -> Step:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def hang_line() -> str:
    await hang()
    return ""


def setup_of(
    engines: ScriptedEngines, environment: Environment | None = None, limits: Limits = LIMITS
) -> AgentSetup:
    made = environment or ChainArithmetic(TASK)
    return AgentSetup(engines, CharFormat(), SAMPLING, limits, environment_of=lambda task: made)


def play(
    engines: ScriptedEngines, environment: Environment | None = None, limits: Limits = LIMITS
) -> Trajectory:
    trajectory = asyncio.run(run_agent(SAMPLE, setup_of(engines, environment, limits)))
    check(trajectory)
    return trajectory


def check(trajectory: Trajectory) -> None:
    """What holds of every trajectory, however it ended."""
    (segment,) = trajectory.segments
    segment.check()
    assert sum(segment.loss_mask) == sum(turn.output_tokens for turn in trajectory.turns)
    assert trajectory.phases.total == pytest.approx(trajectory.duration_s, abs=1e-6)
    assert min(trajectory.phases.values()) >= 0
    assert pickle.loads(pickle.dumps(trajectory)) == trajectory


def test_a_context_grows_by_what_was_sampled_and_what_was_told_and_nothing_is_retokenised() -> None:
    engines = ScriptedEngines("C23*47;", "C1081-5;", "A1076;")
    trajectory = play(engines)
    assert engines.prompts == [
        "Q23*47-5?",
        "Q23*47-5?C23*47;R1081;",
        "Q23*47-5?C23*47;R1081;C1081-5;R1076;",
    ]
    (segment,) = trajectory.segments
    assert text_of(segment.token_ids) == engines.prompts[-1] + "A1076;"
    assert segment.token_ids == engines.contexts[0].token_ids
    assert len(engines.contexts) == 1
    assert trajectory.stop_reason is StopReason.DONE
    assert trajectory.outcome is Outcome.COMPLETED
    assert trajectory.reward == 1.0
    assert trajectory.error is None
    assert (trajectory.task_id, trajectory.group_id, trajectory.sample_index) == ("sum", "0/sum", 2)


def test_masks_logprobs_and_versions_stand_on_sampled_tokens_only() -> None:
    (segment,) = play(ScriptedEngines("C23*47;", "A1081;")).segments
    opening, first, reply, last = 9, 7, 6, 6
    assert list(segment.loss_mask) == [0] * opening + [1] * first + [0] * reply + [1] * last
    given, told = [NO_VERSION] * opening, [NO_VERSION] * reply
    assert list(segment.weights_versions) == given + [1] * first + told + [2] * last
    spoken = [-0.5 * (place + 1) for place in range(7)]
    assert list(segment.logprobs) == [0.0] * opening + spoken + [0.0] * reply + spoken[:last]


def test_turns_tell_lengths_and_timings_as_the_engines_gave_them() -> None:
    first, last = play(ScriptedEngines("C23*47;", "A1081;")).turns
    assert (first.prompt_tokens, first.hit_tokens, first.miss_tokens) == (9, 8, 1)
    assert (first.output_tokens, first.tool_tokens) == (7, 6)
    assert (last.prompt_tokens, last.output_tokens, last.tool_tokens) == (22, 6, 0)
    assert (first.ttft_s, first.ttst_s, first.tpot_s) == (1.5, 1.6, 0.1)
    assert (first.weights_version, last.weights_version) == (1, 2)
    assert first.finish_reason is FinishReason.STOP_ID
    assert (first.recomputed_tokens, first.num_attempts) == (3, 2)


def test_request_ids_number_the_turns_and_sampling_gains_the_formats_stops() -> None:
    engines = ScriptedEngines("C23*47;", "A1081;")
    play(engines)
    assert engines.request_ids == ["job/0/sum/2/0", "job/0/sum/2/1"]
    expected = replace(SAMPLING, stop_ids=(ord(";"), 7), stop_strings=("?", "!"))
    assert engines.samplings == [expected, expected]
    assert engines.deadlines_s == [10.0, 10.0]


@pytest.mark.parametrize("engine_total_s", [3.75, 8.0])
def test_every_second_is_charged_to_one_phase(engine_total_s: float) -> None:
    clock = FakeClock()
    phases = PhaseSeconds(*(seconds * engine_total_s / PHASES.total for seconds in PHASES.values()))
    engines = ScriptedEngines("C23*47;", "A1081;", clock=clock, phases=phases)
    setup = replace(setup_of(engines), clock=clock, environment_of=lambda task: SlowEnvironment(task, clock))
    trajectory = asyncio.run(run_agent(SAMPLE, setup, step_started_s=97.0))
    check(trajectory)
    assert (trajectory.started_s, trajectory.duration_s, trajectory.finished_s) == (3.0, 12.0, 15.0)
    for turn, started_s in zip(trajectory.turns, (0.0, 6.0), strict=True):
        assert (turn.started_s, turn.tool_s, turn.phases.tool) == (started_s, 2.0, 2.0)
        assert turn.phases.total == pytest.approx(6.0)
        assert turn.phases.other == pytest.approx(max(4.0 - engine_total_s, 0.0))
        assert turn.phases.decode == pytest.approx(2.0 * turn.phases.prefill)
    assert trajectory.phases.tool == 4.0


def test_rewards_of_several_steps_add_up() -> None:
    steps = (Step("R;", 0.25, done=False), Step(None, 0.5, done=True))
    environment = ScriptedEnvironment(*steps)
    trajectory = play(ScriptedEngines("a;", "b;"), environment)
    assert trajectory.reward == 0.75
    assert environment.heard == ["a", "b"]


def test_the_last_turn_that_is_allowed_ends_it_and_is_not_answered() -> None:
    engines = ScriptedEngines("C1+1;", "C2+1;", "C3+1;")
    trajectory = play(engines, limits=replace(LIMITS, max_turns=2))
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(trajectory.turns) == 2
    assert text_of(trajectory.segments[0].token_ids) == "Q23*47-5?C1+1;R2;C2+1;"


def test_max_tokens_shrinks_to_the_room_that_is_left() -> None:
    engines = ScriptedEngines("C1+1;", "C2+1;")
    trajectory = play(engines, limits=replace(LIMITS, max_context_tokens=22))
    assert [sampling.max_tokens for sampling in engines.samplings] == [13, 5]
    assert trajectory.stop_reason is StopReason.MAX_CONTEXT
    assert trajectory.num_tokens == 22
    assert [turn.tool_tokens for turn in trajectory.turns] == [3, 0]


def test_a_reply_that_leaves_no_room_for_an_answer_is_not_appended() -> None:
    trajectory = play(ScriptedEngines("C1+1;"), limits=replace(LIMITS, max_context_tokens=17))
    assert trajectory.stop_reason is StopReason.MAX_CONTEXT
    assert text_of(trajectory.segments[0].token_ids) == "Q23*47-5?C1+1;"


def test_an_opening_without_room_for_an_answer_ends_before_the_first_turn() -> None:
    engines = ScriptedEngines()
    trajectory = play(engines, limits=replace(LIMITS, max_context_tokens=9))
    assert trajectory.stop_reason is StopReason.MAX_CONTEXT
    assert trajectory.turns == ()
    assert engines.request_ids == []


def test_a_turn_that_was_cut_is_heard_and_closed_before_the_reply() -> None:
    environment = ScriptedEnvironment(Step("R;", 0.0, done=False), Step(None, 1.0, done=True))
    engines = ScriptedEngines("x" * 20, "b;")
    trajectory = play(engines, environment)
    assert environment.heard == ["x" * 16, "b"]
    assert engines.prompts[1] == "Q?" + "x" * 16 + ";R;"
    assert trajectory.turns[0].finish_reason is FinishReason.LENGTH
    assert trajectory.turns[0].tool_tokens == 3
    assert trajectory.stop_reason is StopReason.DONE


@pytest.mark.parametrize(
    ("max_context_tokens", "reason"), [(100, StopReason.MAX_TOKENS), (12, StopReason.MAX_CONTEXT)]
)
def test_an_environment_that_ends_at_a_cut_turn_makes_it_a_truncation(
    max_context_tokens: int, reason: StopReason
) -> None:
    environment = ScriptedEnvironment(Step(None, 0.0, done=True))
    limits = replace(LIMITS, max_context_tokens=max_context_tokens)
    trajectory = play(ScriptedEngines("x" * 20), environment, limits)
    assert trajectory.stop_reason is reason
    assert trajectory.outcome is Outcome.TRUNCATED


def test_an_environment_that_raises_is_recorded_with_the_turn_it_failed_on() -> None:
    environment = ScriptedEnvironment(Step("R;", 0.5, done=False), KeyError("no\nsuch tool"))
    trajectory = play(ScriptedEngines("a;", "b;"), environment)
    assert trajectory.stop_reason is StopReason.TOOL_ERROR
    assert trajectory.outcome is Outcome.TOOL_FAILED
    assert trajectory.error == "KeyError: 'no\\nsuch tool'"
    assert trajectory.reward == 0.5
    assert [turn.tool_tokens for turn in trajectory.turns] == [2, 0]
    assert text_of(trajectory.segments[0].token_ids) == "Q?a;R;b;"


@pytest.mark.parametrize("error", [OSError("disk\nfull"), TimeoutError("mine")])
def test_an_environment_that_cannot_start_or_raises_its_own_timeout_is_a_tool_error(error: Exception) -> None:
    for environment in (ScriptedEnvironment(opening=error), ScriptedEnvironment(error)):
        trajectory = play(ScriptedEngines("a;"), environment)
        assert trajectory.stop_reason is StopReason.TOOL_ERROR
        assert trajectory.error == f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def test_an_environment_that_hangs_is_a_tool_error_after_its_timeout() -> None:
    limits = replace(LIMITS, tool_timeout_s=0.02)
    trajectory = play(ScriptedEngines("a;"), HangingEnvironment(), limits)
    assert trajectory.stop_reason is StopReason.TOOL_ERROR
    assert trajectory.error == "the environment did not answer within 0.02 s"
    assert trajectory.turns[0].tool_s >= 0.02
    assert trajectory.phases.tool >= 0.02


def test_engines_that_fail_end_it_with_what_it_has() -> None:
    trajectory = play(ScriptedEngines("C1+1;", EngineError("no decode\nengine")))
    assert trajectory.stop_reason is StopReason.ENGINE_ERROR
    assert trajectory.outcome is Outcome.ENGINE_FAILED
    assert trajectory.error == "EngineError: no decode"
    assert text_of(trajectory.segments[0].token_ids) == "Q23*47-5?C1+1;R2;"
    assert len(trajectory.turns) == 1


def test_engines_that_do_not_answer_by_the_deadline_are_an_engine_error() -> None:
    trajectory = play(ScriptedEngines(hang_line), limits=replace(LIMITS, turn_deadline_s=0.02))
    assert trajectory.stop_reason is StopReason.ENGINE_ERROR
    assert trajectory.error == "the engines did not answer job/0/sum/2/0 within 0.02 s"


@pytest.mark.parametrize("error", [RuntimeError("ours"), TimeoutError("ours")])
def test_an_error_that_is_not_the_engines_own_passes_through(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"):
        play(ScriptedEngines(error))


def test_wall_time_ends_it_even_if_the_engines_hang() -> None:
    trajectory = play(ScriptedEngines("C1+1;", hang_line), limits=replace(LIMITS, wall_time_s=0.05))
    assert trajectory.stop_reason is StopReason.WALL_TIME
    assert trajectory.outcome is Outcome.TIMED_OUT
    assert len(trajectory.turns) == 1
    assert trajectory.phases.other >= 0.04


def test_wall_time_during_a_tool_keeps_what_was_sampled() -> None:
    limits = replace(LIMITS, wall_time_s=0.05)
    trajectory = play(ScriptedEngines("a;"), HangingEnvironment(), limits)
    assert trajectory.stop_reason is StopReason.WALL_TIME
    assert text_of(trajectory.segments[0].token_ids) == "Q?a;"
    assert trajectory.turns[0].tool_s >= 0.04


def test_an_abort_during_a_turn_returns_what_there_is() -> None:
    async def abort_while_hanging() -> tuple[Trajectory, bool]:
        abort, taken_back = asyncio.Event(), asyncio.Event()

        async def hang_until_cancelled() -> str:
            abort.set()
            try:
                return await hang_line()
            except asyncio.CancelledError:
                taken_back.set()
                raise

        engines = ScriptedEngines("C1+1;", hang_until_cancelled)
        return await run_agent(SAMPLE, setup_of(engines), abort=abort), taken_back.is_set()

    trajectory, taken_back = asyncio.run(abort_while_hanging())
    check(trajectory)
    assert taken_back
    assert trajectory.stop_reason is StopReason.ABORTED
    assert trajectory.outcome is Outcome.TRUNCATED
    assert len(trajectory.turns) == 1


def test_an_abort_before_the_start_asks_the_engines_nothing() -> None:
    async def abort_first() -> Trajectory:
        abort = asyncio.Event()
        abort.set()
        return await run_agent(SAMPLE, setup_of(ScriptedEngines()), abort=abort)

    trajectory = asyncio.run(abort_first())
    check(trajectory)
    assert trajectory.stop_reason is StopReason.ABORTED
    assert trajectory.num_tokens == 0


def test_an_abort_event_that_is_never_set_changes_nothing() -> None:
    async def finish() -> Trajectory:
        return await run_agent(SAMPLE, setup_of(ScriptedEngines(*GIVEN_UP)), abort=asyncio.Event())

    trajectory = asyncio.run(finish())
    assert trajectory.stop_reason is StopReason.DONE
    assert trajectory.reward == 0.0


def test_an_agent_says_what_it_waits_for_as_it_goes() -> None:
    phases: list[str] = []
    engines = ScriptedEngines("C23*47;", "A1076;")
    asyncio.run(run_agent(SAMPLE, setup_of(engines), on_phase=phases.append))
    assert phases == ["decode", "tool", "decode", "tool"]


def test_engines_hear_while_an_agent_waits_for_its_tool() -> None:
    engines = ScriptedEngines(*GIVEN)
    play(engines)
    spoken = [len(prompt) + len(line) for prompt, line in zip(engines.prompts, GIVEN, strict=True)]
    first, second = engines.request_ids
    assert engines.waits == [(first, spoken[0]), None, (second, spoken[1]), None]


def test_engines_that_were_told_to_abort_the_request_end_it() -> None:
    class AbortingEngines(ScriptedEngines):
        async def run_turn(
            self,
            context: Context,
            request_id: RequestId,
            sampling: SamplingParams,
            deadline_s: float,
            on_phase: OnPhase,
            hints: TurnHints,
        ) -> TurnResult:
            result = await super().run_turn(context, request_id, sampling, deadline_s, on_phase, hints)
            return replace(result, finish_reason=FinishReason.ABORTED)

    environment = ScriptedEnvironment()
    trajectory = play(AbortingEngines("half a lin"), environment)
    assert trajectory.stop_reason is StopReason.ABORTED
    assert environment.heard == []
    assert text_of(trajectory.segments[0].token_ids) == "Q?half a lin"


def test_turns_say_what_is_left_as_the_trajectories_before_have_it() -> None:
    lengths, lines = ExpectedLengths(), ("C23*47;", "A1076;")
    engines = [ScriptedEngines(*lines) for _ in range(2)]
    for scripted in engines:
        first = asyncio.run(run_agent(SAMPLE, replace(setup_of(scripted), lengths=lengths)))
    assert engines[0].hints == [TurnHints("0/sum", None)] * 2
    left = [first.num_tokens - len(prompt) for prompt in engines[1].prompts]
    assert engines[1].hints == [TurnHints("0/sum", tokens) for tokens in left]


def test_a_trajectory_that_breaks_is_no_measure_for_others() -> None:
    lengths = ExpectedLengths()
    engines = ScriptedEngines("C23*47;", EngineError("gone"))
    asyncio.run(run_agent(SAMPLE, replace(setup_of(engines), lengths=lengths)))
    assert lengths.remaining(TASK.task_id, 0, 100) is None


def test_cancelling_the_agent_passes_through() -> None:
    async def cancel_while_hanging() -> None:
        started = asyncio.Event()

        async def hang_after_starting() -> str:
            started.set()
            return await hang_line()

        agent = asyncio.create_task(run_agent(SAMPLE, setup_of(ScriptedEngines(hang_after_starting))))
        await started.wait()
        agent.cancel()
        await agent

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel_while_hanging())


def test_many_agents_at_once_do_not_disturb_one_another() -> None:
    async def play_all() -> list[Trajectory]:
        samples = [replace(SAMPLE, sample_index=index) for index in range(20)]
        engines = [ScriptedEngines("C23*47;", f"C1081-{index};", f"A{1081 - index};") for index in range(20)]
        plays = (
            run_agent(sample, replace(setup_of(scripted), environment_of=ChainArithmetic))
            for sample, scripted in zip(samples, engines, strict=True)
        )
        return await asyncio.gather(*plays)

    trajectories = asyncio.run(play_all())
    assert [trajectory.sample_index for trajectory in trajectories] == list(range(20))
    assert [trajectory.reward for trajectory in trajectories] == [float(i == 5) for i in range(20)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_turns", 0),
        ("max_context_tokens", 1),
        ("wall_time_s", 0.0),
        ("turn_deadline_s", -1.0),
        ("tool_timeout_s", 0.0),
    ],
)
def test_a_limit_that_cannot_be_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^limits\.{name} must be .*, got {value}$"):
        replace(LIMITS, **{name: value})


@pytest.mark.parametrize(
    "environment",
    [
        ScriptedEnvironment(Step(None, 1.0, done=True)),
        ScriptedEnvironment(Step(None, 1.0, done=True), close_error=OSError("no way out")),
        ScriptedEnvironment(ValueError("broken")),
        ScriptedEnvironment(opening=ValueError("broken")),
        HangingEnvironment(),
    ],
    ids=["done", "cannot close", "breaks", "cannot open", "hangs"],
)
def test_an_environment_is_closed_once_however_it_ended_and_what_that_raises_changes_nothing(
    environment: ScriptedEnvironment,
) -> None:
    trajectory = play(ScriptedEngines("a;"), environment, replace(LIMITS, wall_time_s=0.2))
    assert environment.closed == 1
    assert trajectory.reward in (0.0, 1.0)
    assert (trajectory.error is None) == (trajectory.outcome is not Outcome.TOOL_FAILED)

"""A replayed session on scripted engines: what it appends, what it asks for, what it drops and waits for."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from engines.context import Context
from engines.errors import EngineFailed
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
from rollout.agent_run import Sample
from rollout.history import History
from rollout.journal_record import Record, TurnEnded
from rollout.limits import Limits
from rollout.replay_agent import ReplaySetup, prepare_history, run_replay
from rollout.replay_task import ReplayTask
from rollout.replay_tokens import TokenSource
from rollout.traces.session import Piece, Round, Session
from rollout.types import Outcome, Segment, StopReason, Trajectory

ROUNDS = (
    Round((Piece("s", 0, 30),), 5, tool_wait_s=100.0),
    Round((Piece("s", 30, 10),), 3),
    Round((Piece("t", 0, 8),), 2, keep_tokens=20),
)
SESSION = Session("s", ROUNDS)


class CountingEngines:
    """Generates as many tokens as it is asked for, or as many as it is told to."""

    def __init__(self, most: int = 10**6, error: Exception | None = None) -> None:
        self.prompts: list[array[int]] = []
        self.samplings: list[SamplingParams] = []
        self.hints: list[TurnHints] = []
        self.waits: list[tuple[RequestId, int] | None] = []
        """After which turn and how many tokens each wait began; None: it ended."""
        self._most = most
        self._error = error

    def open_context(self) -> Context:
        return Context(BlockKey(bytes(16)), block_tokens=4)

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
        if self._error is not None:
            raise self._error
        self.prompts.append(context.token_ids[:])
        self.samplings.append(sampling)
        self.hints.append(hints)
        num_tokens = min(sampling.max_tokens, self._most)
        return TurnResult(
            token_ids=array("i", [1000 + len(self.prompts)] * num_tokens),
            logprobs=array("f", [0.0] * num_tokens),
            weights_version=0,
            finish_reason=FinishReason.LENGTH,
            prompt_tokens=len(context),
            hit_tokens=0,
            ttft_s=0.1,
            ttst_s=0.2,
            tpot_s=0.01,
            duration_s=0.3,
            phases=PhaseSeconds(other=0.3),
        )


def setup_of(
    engines: CountingEngines, *, most_tokens: int = 1000, tool_wait_scale: float = 0.0
) -> ReplaySetup:
    limits = Limits(
        max_turns=1,
        max_context_tokens=most_tokens,
        wall_time_s=20.0,
        turn_deadline_s=10.0,
        tool_timeout_s=0.001,
    )
    return ReplaySetup(engines, limits, TokenSource(range(256)), tool_wait_scale)


def play(engines: CountingEngines, session: Session = SESSION, **options: float) -> Trajectory:
    sample, setup = Sample(ReplayTask("s", session), "0/s", 0), setup_of(engines, **options)
    return asyncio.run(run_replay(sample, setup, asyncio.Event(), lambda phase: None))


def test_every_round_appends_and_generates_what_the_trace_says():
    engines = CountingEngines()
    trajectory = play(engines)
    assert (trajectory.outcome, trajectory.stop_reason) == (Outcome.COMPLETED, StopReason.DONE)
    assert [turn.prompt_tokens for turn in trajectory.turns] == [30, 45, 28]
    assert [turn.output_tokens for turn in trajectory.turns] == [5, 3, 2]
    assert [turn.tool_tokens for turn in trajectory.turns] == [10, 8, 0]
    for sampling, each in zip(engines.samplings, ROUNDS, strict=True):
        assert sampling == SamplingParams(max_tokens=each.output_tokens, temperature=0.0)


def test_every_turn_says_what_the_trace_has_left():
    engines = CountingEngines()
    play(engines)
    assert engines.hints == [TurnHints("0/s", tokens) for tokens in (58, 23, 10)]


def test_the_context_goes_on_from_what_was_generated():
    engines = CountingEngines()
    play(engines)
    first, second, _ = engines.prompts
    assert second[:30] == first
    assert list(second[30:35]) == [1001] * 5


def test_a_round_that_drops_context_begins_a_segment_with_what_it_keeps():
    engines = CountingEngines()
    trajectory = play(engines)
    assert engines.prompts[2][:20] == engines.prompts[0][:20]
    assert [turn.segment for turn in trajectory.turns] == [0, 0, 1]
    assert [len(segment) for segment in trajectory.segments] == [48, 30]
    for segment in trajectory.segments:
        segment.check()


def test_history_comes_before_the_first_round_and_is_prepared_with_one_token():
    session = Session("s", ROUNDS[1:2], history=(Piece("s", 0, 30), Piece("s/generated/0", 0, 5)))
    played, prepared = CountingEngines(), CountingEngines()
    play(played, session)
    num_computed = asyncio.run(prepare_history(ReplayTask("s", session), setup_of(prepared)))
    assert num_computed == 35
    assert prepared.samplings[0].max_tokens == 1
    assert played.prompts[0][:35] == prepared.prompts[0]


def test_no_history_asks_the_engines_nothing():
    engines = CountingEngines()
    assert asyncio.run(prepare_history(ReplayTask("s", SESSION), setup_of(engines))) == 0
    assert not engines.prompts


def test_tools_are_waited_for_scaled_and_their_time_is_the_trajectorys():
    engines = CountingEngines()
    trajectory = play(engines, tool_wait_scale=0.0005)
    assert engines.waits == [(RequestId("0/s/0/0"), 35), None]
    assert trajectory.turns[0].tool_s == pytest.approx(0.05, abs=0.04)
    assert trajectory.phases.tool == pytest.approx(sum(turn.tool_s for turn in trajectory.turns))
    assert play(CountingEngines()).phases.tool < 0.01


def test_a_context_that_would_not_fit_ends_it():
    trajectory = play(CountingEngines(), most_tokens=47)
    assert trajectory.stop_reason is StopReason.MAX_CONTEXT
    assert len(trajectory.turns) == 1


def test_engines_that_generate_less_than_asked_fail_it():
    trajectory = play(CountingEngines(most=4))
    assert trajectory.outcome is Outcome.ENGINE_FAILED
    assert trajectory.error == "the engines generated 4 tokens, the trace says 5"


def test_engines_that_fail_are_on_its_record():
    trajectory = play(CountingEngines(error=EngineFailed("gone")))
    assert trajectory.outcome is Outcome.ENGINE_FAILED
    assert trajectory.error is not None
    assert "gone" in trajectory.error


@pytest.mark.parametrize("num_played", [1, 2])
def test_a_replay_that_was_cut_off_goes_on_after_its_last_finished_round(num_played):
    engines = CountingEngines()
    whole = play(engines)
    sample = Sample(ReplayTask("s", SESSION), "0/s", 0)
    records: list[Record] = []
    asyncio.run(run_replay(sample, setup_of(CountingEngines()), None, lambda phase: None, records.append))
    history = history_of(records[:num_played])
    resumed = CountingEngines()
    resumed.prompts += engines.prompts[:num_played]  # so that it says what it would have said
    sample = replace(sample, history=history)
    again = asyncio.run(run_replay(sample, setup_of(resumed), None, lambda phase: None))
    assert resumed.prompts == engines.prompts
    assert again.segments == whole.segments
    assert again.turns[:num_played] == history.turns


def history_of(records: Sequence[Record]) -> History:
    segments: list[Segment] = []
    for record in records:
        assert isinstance(record, TurnEnded)
        for tail in record.tails:
            segments += [Segment()] * (tail.segment + 1 - len(segments))
            tail.append_to(segments[tail.segment])
    turns = tuple(record.turn for record in records if isinstance(record, TurnEnded))
    return History(tuple(segments), turns, started_s=0.0, elapsed_s=0.1)

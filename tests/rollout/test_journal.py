"""The journal: what was written is read back, whatever became of its end."""

from __future__ import annotations

import asyncio
import dataclasses
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout.agent import AgentSetup, run_agent
from rollout.agent_run import Sample
from rollout.chain_arithmetic import ChainArithmetic
from rollout.environment import Step
from rollout.history import History
from rollout.journal import (
    JournalError,
    JournalWriter,
    StepJournal,
    forget_steps_before,
    read_step,
    steps_on_record,
)
from rollout.journal_record import FORMAT, Record, StepBegan, TurnEnded, frame, unframe
from rollout.tasks import Task
from rollout.types import StopReason, Trajectory
from tests.rollout.test_agent import LIMITS, SAMPLE, SAMPLING, TASK, CharFormat, ScriptedEngines

BEGAN = StepBegan(FORMAT, step=3, weights_version=2, weights_id="w2", samples="same")
LINES = ("C23*47;", "C1081-5;", "A1076;")


def play(
    *lines: str | BaseException, sample: Sample = SAMPLE, environment: object = None
) -> tuple[Trajectory, list[Record]]:
    """A trajectory of the arithmetic task, and the records of it."""
    records: list[Record] = []

    def made(task: Task) -> ChainArithmetic:
        return environment or ChainArithmetic(task)  # type: ignore[return-value]

    setup = AgentSetup(ScriptedEngines(*lines), CharFormat(), SAMPLING, LIMITS, environment_of=made)
    trajectory = asyncio.run(run_agent(sample, setup, on_record=records.append))
    return trajectory, records


def written(folder: Path, records: Sequence[Record], began: StepBegan = BEGAN) -> Path:
    """A life of the step, written down."""
    with JournalWriter(folder, began) as journal:
        journal.append([frame(record) for record in records])
    return journal.path


def read(folder: Path) -> StepJournal:
    found = read_step(folder, 3)
    assert found is not None
    return found


def test_a_finished_trajectory_comes_back_as_it_was(tmp_path: Path) -> None:
    trajectory, records = play(*LINES)
    written(tmp_path, records)
    attempt, found = read(tmp_path).ended[trajectory.trajectory_id]
    assert attempt == 0
    assert found == trajectory
    assert [type(array_) for array_ in dataclasses.astuple(found)[3][0][:1]] == [array]


@pytest.mark.parametrize("num_turns", [1, 2])
def test_a_trajectory_that_was_cut_off_has_its_finished_turns(tmp_path: Path, num_turns: int) -> None:
    trajectory, records = play(*LINES)
    written(tmp_path, records[:num_turns])
    found = read(tmp_path)
    history = found.running[trajectory.trajectory_id]
    assert history.turns == trajectory.turns[:num_turns]
    has_ids = history.segments[0].token_ids
    assert has_ids == trajectory.segments[0].token_ids[: trajectory.turns[num_turns].prompt_tokens]
    assert found.ended == {}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_much_of_the_end_is_lost_or_damaged_what_came_before_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    trajectory, records = play(*LINES)
    path = written(folder, records)
    whole = path.read_bytes()
    ends = [end for _, end in unframe(whole)]
    cut = data.draw(st.integers(0, len(whole) - 1), "cut at")
    damaged = data.draw(st.booleans(), "or damaged there")
    path.write_bytes(whole[:cut] + (bytes([whole[cut] ^ 1]) + whole[cut + 1 :] if damaged else b""))
    num_whole = sum(end <= cut for end in ends)
    found = read_step(folder, 3)
    if num_whole == 0:
        assert found is None
        return
    assert found is not None
    history = found.running.get(trajectory.trajectory_id, History((), (), 0.0, 0.0))
    assert history.turns == trajectory.turns[: num_whole - 1]
    assert found.torn_bytes == (len(whole) if damaged else cut) - ends[num_whole - 1]


def test_a_later_life_goes_on_where_the_one_before_was_cut_off(tmp_path: Path) -> None:
    _, records = play(*LINES)
    written(tmp_path, records[:1])
    history = read(tmp_path).running[SAMPLE.trajectory_id]
    trajectory, more = play(*LINES[1:], sample=replace(SAMPLE, history=history))
    written(tmp_path, more)
    found = read(tmp_path)
    assert found.running == {}
    assert found.ended[SAMPLE.trajectory_id] == (0, trajectory)
    assert len(trajectory.turns) == 3


def test_a_batch_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    trajectory, records = play(*LINES)
    written(tmp_path, [*records[:2], *records[:2], *records[2:], *records[2:]])
    assert read(tmp_path).ended[SAMPLE.trajectory_id] == (0, trajectory)


def test_turns_after_a_gap_are_passed_over(tmp_path: Path) -> None:
    trajectory, records = play(*LINES)
    written(tmp_path, [records[0], *records[2:]])
    assert read(tmp_path).running[SAMPLE.trajectory_id].turns == trajectory.turns[:1]


def test_a_step_under_other_weights_or_with_other_samples_is_another_one(tmp_path: Path) -> None:
    _, records = play(*LINES)
    for change in ({"weights_id": "other"}, {"samples": "others"}):
        written(tmp_path, records)
        assert read(tmp_path).ended
        began = StepBegan(**{name: getattr(BEGAN, name) for name in BEGAN.__struct_fields__} | change)
        written(tmp_path, [], began)
        assert read(tmp_path).ended == {}


@pytest.mark.parametrize("line", ["hang", RuntimeError("engines are gone")])
def test_ends_a_trajectory_did_not_come_to_by_itself_are_not_on_record(line: object) -> None:
    from engines.errors import EngineError

    error = EngineError(str(line))
    trajectory, records = play(LINES[0], error)
    assert trajectory.stop_reason is StopReason.ENGINE_ERROR
    assert [type(record) for record in records] == [TurnEnded]


def test_a_resumed_agent_says_on_what_an_uninterrupted_one_would(tmp_path: Path) -> None:
    whole, records = play(*LINES)
    written(tmp_path, records[:2])
    history = read(tmp_path).running[SAMPLE.trajectory_id]
    again, _ = play(*LINES[2:], sample=replace(SAMPLE, history=history))
    assert again.segments[0].token_ids == whole.segments[0].token_ids
    assert again.reward == whole.reward == 1.0
    assert again.turns[:2] == whole.turns[:2]
    assert again.duration_s >= history.elapsed_s


class Forgetful(ChainArithmetic):
    """Answers otherwise than it did before the kill."""

    async def step(self, text: str) -> Step:
        step = await super().step(text)
        return replace(step, reply="R0;") if step.reply else step


def test_a_trajectory_whose_environment_answers_otherwise_begins_anew(tmp_path: Path) -> None:
    _, records = play(*LINES)
    written(tmp_path, records[:2])
    history = read(tmp_path).running[SAMPLE.trajectory_id]
    environments = iter([Forgetful(TASK), ChainArithmetic(TASK)])
    setup = AgentSetup(
        ScriptedEngines(*LINES),
        CharFormat(),
        SAMPLING,
        LIMITS,
        environment_of=lambda task: next(environments),
    )
    anew: list[Record] = []
    sample = replace(SAMPLE, history=history)
    trajectory = asyncio.run(run_agent(sample, setup, on_record=anew.append))
    assert trajectory.reward == 1.0
    assert [turn.started_s >= history.elapsed_s for turn in trajectory.turns] == [True] * 3
    written(tmp_path, anew)
    assert read(tmp_path).ended[SAMPLE.trajectory_id] == (0, trajectory)


def test_a_text_no_file_can_hold_is_escaped(tmp_path: Path) -> None:
    sample = replace(SAMPLE, group_id="0/\ud800")
    _, records = play(*LINES, sample=sample)
    written(tmp_path, records)
    assert list(read(tmp_path).ended) == ["0/\\ud800/2"]


def test_a_step_nobody_wrote_of_is_none_and_old_steps_can_be_forgotten(tmp_path: Path) -> None:
    assert read_step(tmp_path, 3) is None
    for step in (1, 3):
        written(tmp_path, [], StepBegan(FORMAT, step, 0, "w", "s"))
    assert steps_on_record(tmp_path) == [1, 3]
    forget_steps_before(tmp_path, 3)
    assert steps_on_record(tmp_path) == [3]


def of_another_format(folder: Path) -> None:
    written(folder, [], StepBegan(FORMAT + 1, 3, 0, "w", "s"))


def of_something_else(folder: Path) -> None:
    path = written(folder, [])
    path.write_bytes(frame(["what", 1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("spoil", [of_another_format, of_something_else])
def test_a_journal_this_program_does_not_read_costs_one_line(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    spoil(tmp_path)
    with pytest.raises(JournalError, match=f"not a journal of format {FORMAT}") as caught:
        read_step(tmp_path, 3)
    assert "\n" not in str(caught.value)


def test_a_journal_that_cannot_be_written_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "step-000003").write_text("a file")
    with pytest.raises(JournalError, match=r"cannot write the journal at .*make room or choose another"):
        JournalWriter(tmp_path, BEGAN)

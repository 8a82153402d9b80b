"""What a resumed run goes on from, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import rollout
from rollout.agent_run import Sample
from rollout.compose import to_yaml
from rollout.config import RunConfig
from rollout.errors import UserError
from rollout.journal import JournalWriter
from rollout.journal_record import FORMAT, Record, StepBegan, frame
from rollout.resumption import digest_of, find_resumption
from rollout.run_dir import resumed_overrides
from rollout.types import StopReason
from tests.rollout.test_agent import SAMPLE, TASK
from tests.rollout.test_journal import LINES, play

OVERRIDES = ["job=rollout", "experiment=smoke", "seed=3"]
SAMPLES = [SAMPLE, replace(SAMPLE, sample_index=3), replace(SAMPLE, sample_index=4)]


def config_of(*more: str) -> RunConfig:
    return rollout.load_config([*OVERRIDES, *more])


@pytest.fixture
def cut_off(tmp_path: Path) -> Path:
    """A run of three samples, the first of which had ended; the second had a turn."""
    (tmp_path / "config.yaml").write_text(to_yaml(config_of()))
    (tmp_path / "overrides.json").write_text(json.dumps(OVERRIDES))
    _, ended = play(*LINES)
    _, began = play(*LINES, sample=SAMPLES[1])
    write(tmp_path, [*ended, began[0]])
    return tmp_path


def write(run_dir: Path, records: list[Record], step: int = 0, samples: list[Sample] = SAMPLES) -> None:
    with JournalWriter(run_dir / "journal", StepBegan(FORMAT, step, 0, "w", digest_of(samples))) as journal:
        journal.append([frame(record) for record in records])


def test_what_had_ended_comes_back_what_ran_goes_on_and_the_rest_begins(cut_off: Path) -> None:
    resumption = find_resumption(cut_off, config_of())
    assert "1 trajectories had ended, 1 go on after 1 turns" in resumption.told()
    samples, earlier = resumption.take_up(SAMPLES)
    assert [sample.trajectory_id for sample in samples] == [sample.trajectory_id for sample in SAMPLES]
    ((sample, trajectory),) = earlier.ended
    assert (sample, trajectory.stop_reason) == (SAMPLE, StopReason.DONE)
    assert [len(s.history.turns) if s.history else 0 for s in samples] == [0, 1, 0]
    assert earlier.elapsed_s > 0


def test_the_summary_tells_what_was_taken_up(cut_off: Path) -> None:
    resumption = find_resumption(cut_off, config_of())
    samples, earlier = resumption.take_up(SAMPLES)
    back = [earlier.ended[0][1], play(*LINES[1:], sample=samples[1])[0], play(*LINES, sample=samples[2])[0]]
    figures = resumption.figures(samples, back)
    assert (figures["ended"], figures["continued"], figures["continued_turns"]) == (1, 1, 1)
    assert figures["begun_anew"] == 0
    anew = [back[0], play(*LINES, sample=SAMPLES[1])[0], back[2]]
    assert resumption.figures(samples, anew)["begun_anew"] == 1
    assert resumption.figures(samples, anew)["continued_turns"] == 0


def test_other_tasks_than_before_are_refused(cut_off: Path) -> None:
    others = [replace(sample, task=replace(TASK, prompt="Q1+1?")) for sample in SAMPLES]
    with pytest.raises(UserError, match="has other tasks than now"):
        find_resumption(cut_off, config_of()).take_up(others)


def no_folder(run_dir: Path) -> Path:
    return run_dir / "elsewhere"


def no_journal(run_dir: Path) -> Path:
    (run_dir / "journal").rename(run_dir / "other")
    return run_dir


def finished(run_dir: Path) -> Path:
    (run_dir / "summary.json").write_text("{}")
    return run_dir


def no_configuration(run_dir: Path) -> Path:
    (run_dir / "config.yaml").unlink()
    return run_dir


def torn_configuration(run_dir: Path) -> Path:
    (run_dir / "config.yaml").write_text("a: [")
    return run_dir


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_folder, "there is no such folder"),
        (no_journal, "no journal and no checkpoint"),
        (finished, "that run has finished"),
        (no_configuration, "config.yaml of the run to resume cannot be read"),
        (torn_configuration, "config.yaml of the run to resume cannot be read"),
    ],
)
def test_what_cannot_be_resumed_costs_one_line(
    spoil: Callable[[Path], Path], said: str, cut_off: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find_resumption(spoil(cut_off), config_of())
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=4", "seed was 3 in the run to resume and is 4 now"),
        ("sampling.temperature=0.5", "sampling was"),
        ("task.group_size=7", "task.group_size was 2"),
        ("job=train", "job was rollout"),
    ],
)
def test_a_configuration_that_gives_other_trajectories_is_refused(
    override: str, said: str, cut_off: Path
) -> None:
    with pytest.raises(UserError, match=said):
        find_resumption(cut_off, config_of(override))


def test_a_configuration_that_changes_no_trajectory_is_not(cut_off: Path) -> None:
    assert find_resumption(cut_off, config_of("task.wall_time_s=900.0", "ray.agent_workers=3")).journal


def test_a_resumed_run_has_its_own_overrides_and_those_given_beside(cut_off: Path) -> None:
    (cut_off / "overrides.json").write_text(json.dumps([*OVERRIDES, "run_dir=x", "overwrite=true"]))
    found = resumed_overrides([f"resume={cut_off}", "seed=5"])
    assert found == ["job=rollout", "experiment=smoke", f"resume={cut_off}", "seed=5"]
    assert resumed_overrides(["seed=5"]) == ["seed=5"]
    assert resumed_overrides(["resume=/nowhere", "seed=5"]) == ["resume=/nowhere", "seed=5"]


def test_a_training_run_goes_on_in_the_step_of_its_last_checkpoint(cut_off: Path) -> None:
    folder = cut_off / "checkpoints" / "step-000002"
    folder.mkdir(parents=True)
    (cut_off / "checkpoints" / "latest").write_text(folder.name)
    note = {"step": 2, "weights_version": 2, "ranks": 1, "zero_stage": 0}
    (folder / "trainer.json").write_text(json.dumps(note))
    (cut_off / "config.yaml").write_text(to_yaml(config_of("job=train")))
    resumption = find_resumption(cut_off, config_of("job=train"))
    assert (resumption.step, resumption.journal) == (2, None)
    assert resumption.weights is not None
    assert (resumption.weights.version, resumption.weights.weights_id) == (2, None)
    with JournalWriter(cut_off / "journal", StepBegan(FORMAT, 2, 2, "w2", "s")):
        pass
    resumption = find_resumption(cut_off, config_of("job=train"))
    assert resumption.weights is not None
    assert resumption.weights.weights_id == "w2"
    assert resumption.weights.model_path == str(folder / "model")


def test_a_training_run_without_a_checkpoint_begins_with_its_first_step(cut_off: Path) -> None:
    (cut_off / "config.yaml").write_text(to_yaml(config_of("job=train")))
    resumption = find_resumption(cut_off, config_of("job=train"))
    assert (resumption.step, resumption.weights, resumption.has_checkpoint) == (0, None, False)
    assert resumption.journal is not None

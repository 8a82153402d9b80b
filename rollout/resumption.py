"""Where a run that was cut off goes on, worked out before anything starts.

    job=rollout, replay    in its one step: what had ended comes back as it was, what ran goes on from its
    last
                           finished turn, the rest begins
    job=train              the same in the step of the last checkpoint, or in step 0 without one; training
    steps
                           after that checkpoint, and rollouts under weights they made, are done again, as the
                           same weights would not come out bit for bit

A folder with nothing to go on from, a finished run, and a configuration that would give other trajectories
are refused with one line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from kvstore.keys import WeightsId
from rollout.agent_run import Sample
from rollout.checkpoint import LATEST_FILE, MODEL_FOLDER, latest_checkpoint, read_note
from rollout.compose import to_yaml
from rollout.config import RunConfig
from rollout.controller import Earlier
from rollout.errors import UserError
from rollout.journal import StepJournal, read_step
from rollout.journal_record import writable
from rollout.summary import ResumedFigures
from rollout.types import Trajectory

_DECIDE_TRAJECTORIES = (
    "job",
    "seed",
    "model",
    "engines.kind",
    "model_profile",
    "task.environment",
    "task.path",
    "task.prompts_per_step",
    "task.group_size",
    "controller.oversample",
    "sampling",
    "trace",
    "trace_window",
    "arrivals",
    "agents_per_s",
)
"""Keys whose values make a run's trajectories what they are."""


@dataclass(frozen=True, slots=True)
class StartWeights:
    """The weights that engines begin with, where these are not the model's own."""

    version: int
    weights_id: WeightsId | None
    """What their KV is named with; None: nobody knows any more, so a new name is due."""
    model_path: str


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a run goes on from."""

    step: int
    has_checkpoint: bool
    weights: StartWeights | None
    journal: StepJournal | None

    def told(self) -> str:
        """One line for people."""
        if self.journal is None:
            return f"resuming at the start of step {self.step}: nothing of it is on record"
        turns = sum(len(history.turns) for history in self.journal.running.values())
        return (
            f"resuming in step {self.step}: {len(self.journal.ended)} trajectories had ended, "
            f"{len(self.journal.running)} go on after {turns} turns"
        )

    def take_up(self, samples: Sequence[Sample]) -> tuple[list[Sample], Earlier]:
        """The step's samples with what each had, and which of them had ended."""
        journal = self.journal
        if journal is None:
            return list(samples), Earlier()
        if journal.began.samples != digest_of(samples):
            raise UserError(
                f"step {journal.began.step} of the run to resume has other tasks than now; "
                "its task file or trace has changed"
            )
        ended: list[tuple[Sample, Trajectory]] = []
        going_on: list[Sample] = []
        for sample in samples:
            attempt = journal.attempt_of(writable(sample.trajectory_id), sample.attempt)
            sample = replace(sample, attempt=attempt)
            found = taken_up(journal, sample)
            if isinstance(found, Trajectory):
                ended.append((sample, found))
            going_on.append(sample if isinstance(found, Trajectory) else found)
        return going_on, Earlier(tuple(ended), journal.elapsed_s)

    def figures(self, samples: Sequence[Sample], back: Sequence[Trajectory]) -> ResumedFigures:
        """What became of what was on record, now that the step is over."""
        journal = self.journal
        histories = {sample.trajectory_id: sample.history for sample in samples if sample.history}
        begun_anew = {
            trajectory.trajectory_id
            for trajectory in back
            if (history := histories.get(trajectory.trajectory_id))
            and trajectory.turns[: len(history.turns)] != history.turns
        }
        kept = (history for name, history in histories.items() if name not in begun_anew)
        return {
            "step": self.step,
            "elapsed_s": 0.0 if journal is None else journal.elapsed_s,
            "ended": 0 if journal is None else len(journal.ended),
            "continued": len(histories) - len(begun_anew),
            "continued_turns": sum(len(history.turns) for history in kept),
            "begun_anew": len(begun_anew),
            "torn_bytes": 0 if journal is None else journal.torn_bytes,
        }


def taken_up(journal: StepJournal, sample: Sample) -> Sample | Trajectory:
    """The sample with what its attempt had on record, or what that attempt was when it ended."""
    name = writable(sample.trajectory_id)
    if name in journal.ended and journal.ended[name][0] == sample.attempt:
        ended = journal.ended[name][1]
        return replace(ended, task_id=sample.task.task_id, group_id=sample.group_id)
    history = journal.running.get(name)
    if history is not None and history.attempt == sample.attempt:
        return replace(sample, history=history)
    return sample


def find_resumption(run_dir: Path, config: RunConfig) -> Resumption:
    """What the run in `run_dir` can go on from, under `config`; UserError if it cannot."""
    if not run_dir.is_dir():
        raise UserError(
            f"resume={run_dir}: there is no such folder; give the run_dir of a run that was cut off"
        )
    checkpoints, journals = run_dir / "checkpoints", run_dir / "journal"
    has_checkpoint = config.job == "train" and (checkpoints / LATEST_FILE).is_file()
    if not has_checkpoint and not journals.is_dir():
        raise UserError(
            f"resume={run_dir}: no journal and no checkpoint there, so nothing to go on from; "
            "start it again with overwrite=true"
        )
    if (run_dir / "summary.json").exists() and not has_checkpoint:
        raise UserError(f"resume={run_dir}: that run has finished; its figures are in summary.json")
    _refuse_another_run(run_dir / "config.yaml", config)
    step, version, model_path = 0, 0, None
    if has_checkpoint:
        folder = latest_checkpoint(checkpoints)
        note = read_note(folder)
        step, version, model_path = note.step, note.weights_version, folder / MODEL_FOLDER
    journal = read_step(journals, step)
    if journal is not None and journal.began.weights_version != version:
        journal = None
    if model_path is None or version == 0:
        return Resumption(step, has_checkpoint, None, journal)
    weights_id = None if journal is None else WeightsId(journal.began.weights_id)
    return Resumption(step, has_checkpoint, StartWeights(version, weights_id, str(model_path)), journal)


def digest_of(samples: Sequence[Sample]) -> str:
    """Tells whether a step has the same samples of the same tasks."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.trajectory_id, sample.task)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:32]


def _refuse_another_run(config_file: Path, config: RunConfig) -> None:
    try:
        before = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        assert isinstance(before, dict)
    except (OSError, ValueError, AssertionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{config_file} of the run to resume cannot be read: {why}") from error
    now = yaml.safe_load(to_yaml(config))
    keys = (*_DECIDE_TRAJECTORIES, *(("num_agents",) if config.job == "replay" else ()))
    for key in keys:
        was, given = _at(before, key), _at(now, key)
        if was != given:
            raise UserError(
                f"{key} was {was} in the run to resume and is {given} now, which gives other trajectories; "
                "leave it out, or start another run"
            )


def _at(values: Mapping[str, object], key: str) -> object:
    found: object = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found

"""The journal of a run: every finished turn, on disk before the run ends.

    <run_dir>/journal/step-000003/000000.journal    what the first life of the step wrote
                                  000001.journal    what the one that resumed it wrote, and so on

A file is frames (rollout.journal_record), appended by the driver as agent workers tell of turns. What was
written outlives any kill of the run's processes; the last `sync_s` seconds of it may be lost when the host
loses power, and a torn end is passed over. A file is never written again by a later life, so nothing is
repaired in place.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from rollout.errors import UserError
from rollout.history import History
from rollout.journal_record import (
    FORMAT,
    Record,
    SegmentTail,
    StepBegan,
    TrajectoryEnded,
    TurnEnded,
    frame,
    unframe,
)
from rollout.types import Segment, Trajectory, Turn


class JournalError(UserError):
    """The journal cannot be written or read; what was written before is whole."""


class JournalWriter:
    """One life of one step. Its methods may be called from any thread."""

    def __init__(self, folder: Path, began: StepBegan) -> None:
        """`folder`: the run's journal/."""
        self.folder, self.step = folder, began.step
        step_folder = folder / _step_name(began.step)
        self._lock = threading.Lock()
        with _told_in_one_line("write", step_folder):
            step_folder.mkdir(parents=True, exist_ok=True)
            self.path = step_folder / f"{len(_files(step_folder)):06d}.journal"
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            self._is_dirty = True
            _sync_folder(step_folder)
        self.num_bytes = 0
        self.append([frame(began)])
        self.sync()

    def append(self, frames: Sequence[bytes]) -> None:
        """Hand frames to the system: from here on a kill of this process does not lose them."""
        data = memoryview(b"".join(frames))
        with self._lock, _told_in_one_line("write", self.path):
            self.num_bytes += len(data)
            self._is_dirty = True
            while data:
                data = data[os.write(self._file, data) :]

    def sync(self) -> None:
        """Have all that was appended on the disk."""
        with self._lock, _told_in_one_line("write", self.path):
            if self._is_dirty:
                self._is_dirty = False
                os.fdatasync(self._file)

    def close(self) -> None:
        """Idempotent."""
        if self._file < 0:
            return
        try:
            self.sync()
        finally:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class StepJournal:
    """What is on record of a step."""

    began: StepBegan
    """Of its last life."""
    running: dict[str, History]
    """Trajectories that were cut off, by id."""
    ended: dict[str, tuple[int, Trajectory]]
    """Attempt and trajectory of those that were not."""
    elapsed_s: float
    """What the step's clock showed at the last record."""

    def attempt_of(self, name: str, default: int) -> int:
        """The attempt at a trajectory that was played last."""
        if name in self.ended:
            return self.ended[name][0]
        return self.running[name].attempt if name in self.running else default

    torn_bytes: int
    """At the ends of files, of records that were not whole."""


def read_step(folder: Path, step: int) -> StepJournal | None:
    """What the run's journal/ knows of a step; None: nothing."""
    reading: _Reading | None = None
    with _told_in_one_line("read", folder):
        for path in _files(folder / _step_name(step)):
            data = path.read_bytes()
            whole_bytes = 0
            for record, whole_bytes in _records(path, data):  # noqa: B007  told after the loop
                if reading is None or (isinstance(record, StepBegan) and not reading.goes_on_in(record)):
                    assert isinstance(record, StepBegan), path
                    reading = _Reading(record)
                reading.take(record)
            if reading is not None:
                reading.torn_bytes += len(data) - whole_bytes
    return None if reading is None else reading.journal()


def steps_on_record(folder: Path) -> list[int]:
    """Steps of which the run's journal/ knows anything."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def forget_steps_before(folder: Path, step: int) -> None:
    """Remove what no resumption can begin with any more."""
    for earlier in steps_on_record(folder):
        if earlier < step:
            shutil.rmtree(folder / _step_name(earlier), ignore_errors=True)


@dataclass(slots=True)
class _Draft:
    """A trajectory as its records come in."""

    started_s: float
    attempt: int
    segments: list[Segment] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    elapsed_s: float = 0.0

    def extend(self, tails: Sequence[SegmentTail]) -> None:
        for tail in tails:
            while len(self.segments) <= tail.segment:
                self.segments.append(Segment())
            tail.append_to(self.segments[tail.segment])


class _Reading:
    """The state of a step after some of its records."""

    def __init__(self, began: StepBegan) -> None:
        self._began = began
        self._drafts: dict[str, _Draft] = {}
        self._ended: dict[str, tuple[int, Trajectory]] = {}
        self._elapsed_s = 0.0
        self.torn_bytes = 0

    def goes_on_in(self, began: StepBegan) -> bool:
        """Is a later life's step this one? Under other weights, or with other samples, it is not."""
        return (began.weights_id, began.samples) == (self._began.weights_id, self._began.samples)

    def take(self, record: Record) -> None:
        if isinstance(record, TurnEnded):
            self._take_turn(record)
        elif isinstance(record, TrajectoryEnded):
            self._take_end(record)

    def journal(self) -> StepJournal:
        running = {
            name: History(
                tuple(draft.segments), tuple(draft.turns), draft.started_s, draft.elapsed_s, draft.attempt
            )
            for name, draft in self._drafts.items()
        }
        return StepJournal(self._began, running, self._ended, self._elapsed_s, self.torn_bytes)

    def _take_turn(self, record: TurnEnded) -> None:
        name = record.trajectory_id
        self._elapsed_s = max(self._elapsed_s, record.started_s + record.elapsed_s)
        if record.index == 0:  # it begins, perhaps anew
            self._drafts[name] = _Draft(record.started_s, record.attempt)
            self._ended.pop(name, None)
        draft = self._drafts.get(name)
        if draft is None or (record.index, record.attempt) != (len(draft.turns), draft.attempt):
            return  # a record before this one is missing
        draft.extend(record.tails)
        draft.turns.append(record.turn)
        draft.elapsed_s = record.elapsed_s

    def _take_end(self, record: TrajectoryEnded) -> None:
        name = record.trajectory_id
        draft = self._drafts.get(name) or _Draft(record.started_s, record.attempt)
        if (record.num_turns, record.attempt) != (len(draft.turns), draft.attempt):
            return
        self._drafts.pop(name, None)
        draft.extend(record.tails)
        self._elapsed_s = max(self._elapsed_s, record.started_s + record.duration_s)
        self._ended[name] = (
            record.attempt,
            Trajectory(
                task_id=record.task_id,
                group_id=record.group_id,
                sample_index=record.sample_index,
                segments=tuple(draft.segments),
                turns=tuple(draft.turns),
                reward=record.reward,
                stop_reason=record.stop_reason,
                started_s=record.started_s,
                duration_s=record.duration_s,
                phases=record.phases,
                error=record.error,
            ),
        )


def _records(path: Path, data: bytes) -> Iterator[tuple[Record, int]]:
    """Those of one file; it begins with the step's."""
    try:
        for index, (record, end) in enumerate(unframe(data)):
            if index == 0 and not (isinstance(record, StepBegan) and record.format == FORMAT):
                raise JournalError(
                    f"{path} is not a journal of format {FORMAT}; resume it with its own program"
                )
            yield record, end
    except msgspec.MsgspecError as error:
        raise JournalError(f"{path} is not a journal of format {FORMAT}: {error}") from error


def _files(step_folder: Path) -> list[Path]:
    return sorted(step_folder.glob("*.journal"))


def _step_name(step: int) -> str:
    return f"step-{step:06d}"


def _sync_folder(folder: Path) -> None:
    for path in (folder, folder.parent, folder.parent.parent):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _told_in_one_line(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "; make room or choose another run_dir" if verb == "write" else ""
        raise JournalError(
            f"cannot {verb} the journal at {path}: {error.strerror or error}{advice}"
        ) from error

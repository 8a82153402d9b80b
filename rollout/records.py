"""trajectories.parquet: every trajectory of a run, readable whatever ends the run.

While a run goes on, each batch is a small parquet file of its own in `trajectories.parts/`, written under
another name and renamed, so a run killed at any instant leaves all finished batches readable. Closing the
writer (at the end, on an error, on Ctrl-C) streams them into the one `trajectories.parquet` and removes
the parts. A single growing file would be unreadable until its footer is written at the very end, and
rewriting it after each step would cost the square of the run's length; this writes everything twice.

A step lies in the parquet file or in parts, never in both: parts of a step the file has are leftovers of a
close cut short, and the reader passes over them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from rollout.errors import UserError
from rollout.trajectory_table import SCHEMA, VERSION, VERSION_KEY, from_table, to_table
from rollout.types import Trajectory

logger = logging.getLogger(__name__)

ROW_GROUP_TRAJECTORIES = 256
"""Bounds the memory that writing, merging and reading take."""


class RecordError(UserError):
    """Trajectories cannot be written or read; what was written before is whole."""


class TrajectoryWriter:
    """Appends batches; as a context manager it closes however the block ends.

    Trajectories of steps before `first_step` that are there already are kept, later ones removed: a
    resumed run does those steps again.
    """

    def __init__(self, path: Path, first_step: int = 0) -> None:
        self._path = path
        self._parts = _parts_folder(path)
        self._first_step = first_step
        self._num_written = 0
        with _told_in_one_line("write", path):
            _keep_before(path, first_step)
            self._parts.mkdir(parents=True, exist_ok=True)

    def append(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Write a batch. When this returns, a kill no longer loses it."""
        assert step >= self._first_step, (step, self._first_step)
        with _told_in_one_line("write", self._path):
            for start in range(0, len(trajectories), ROW_GROUP_TRAJECTORIES):
                batch = trajectories[start : start + ROW_GROUP_TRAJECTORIES]
                part = self._parts / f"step-{step:06d}-{self._num_written:06d}.parquet"
                _write_file(part, iter([to_table(step, batch)]))
                self._num_written += 1

    def close(self) -> None:
        """Make the one file. On RecordError the parts stay, and are read as well."""
        if not self._parts.exists():
            return
        with _told_in_one_line("write", self._path):
            _write_file(self._path, _row_groups(self._path))
            shutil.rmtree(self._parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except RecordError as failure:
            if error is None:
                raise
            logger.warning("%s; the trajectories so far are in %s", failure, self._parts)


def read_trajectories(path: Path, step: int | None = None) -> list[Trajectory]:
    """Those of a run, finished or not; only one step's if `step` is given."""
    return [t for at, t in iterate_trajectories(path) if step is None or at == step]


def iterate_trajectories(path: Path) -> Iterator[tuple[int, Trajectory]]:
    """(step, trajectory), a row group in memory at a time."""
    if not path.exists() and not _parts_folder(path).is_dir():
        raise RecordError(f"no trajectories at {path}; give the trajectories.parquet of a run")
    with _told_in_one_line("read", path):
        for table in _row_groups(path):
            yield from from_table(table)


def _parts_folder(path: Path) -> Path:
    return path.with_suffix(".parts")


def _row_groups(path: Path) -> Iterator[pa.Table]:
    """Of the file, then of the parts it has not got, in order of step."""
    merged_steps: set[int] = set()
    if path.exists():
        for table in _tables(path):
            merged_steps.add(_step_of(table))
            yield table
    for part in sorted(_parts_folder(path).glob("step-*.parquet")):
        for table in _tables(part):
            if _step_of(table) not in merged_steps:
                yield table


def _tables(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as parquet:
        found = (parquet.schema_arrow.metadata or {}).get(VERSION_KEY)
        if found != VERSION:
            raise RecordError(
                f"{file} holds trajectories of format {found.decode() if found else 'unknown'}; "
                f"this program reads format {VERSION.decode()}"
            )
        for index in range(parquet.num_row_groups):
            yield parquet.read_row_group(index)


def _step_of(table: pa.Table) -> int:
    """A row group holds trajectories of one step."""
    return int(table.column("step")[0].as_py())


def _write_file(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write the file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_before(path: Path, first_step: int) -> None:
    """Merge what is there of the steps before `first_step`, and remove the rest."""
    if first_step > 0 and (path.exists() or _parts_folder(path).exists()):
        _write_file(path, (t for t in _row_groups(path) if _step_of(t) < first_step))
    else:
        path.unlink(missing_ok=True)
    shutil.rmtree(_parts_folder(path), ignore_errors=True)


@contextmanager
def _told_in_one_line(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        advice = "; make room or choose another run_dir" if verb == "write" else ""
        raise RecordError(f"cannot {verb} trajectories at {path}: {reason}{advice}") from error

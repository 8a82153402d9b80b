"""The folder of one run: who may write it, what lies where in it, and what may be removed from it.

    <run_dir>/.rollout_lock          held while a run is alive; its presence says a run made this folder
              config.yaml            the run's whole configuration
              metrics.jsonl          every series, a line at a time
              overrides.json         what was given on the command line, for `resume`
              trajectories.parquet   every trajectory (trajectories.parts/ while the run is going)
              journal/               every finished turn, for `resume`
              stalls.txt             who waited where, if nothing moved for a while
              serve_token            what clients of job=serve bring, where one was drawn
              summary.json           written last: a folder that has it holds a finished run
              wandb/ kvstore/ checkpoints/
              model/                 the tiny model, where the run makes its own

A folder that never held a run but has one of these names in it is refused, so nothing a run did not
write is ever removed. It does not know what is in the files.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from engines.timeline import Span
from rollout.errors import UserError
from rollout.perfetto import write_trace

LOCK_NAME = ".rollout_lock"
RESULTS = (
    "summary.json",
    "trajectories.parquet",
    "trajectories.parts",
    "journal",
    "metrics.jsonl",
    "checkpoints",
)
"""What is worth keeping of a run, most telling first."""
ALL_NAMES = (
    *RESULTS,
    "config.yaml",
    "overrides.json",
    "serve_token",
    "stalls.txt",
    "trace.json",
    "model",
    "wandb",
    "kvstore",
)
_OVERRIDES = "overrides.json"


class RunDirError(UserError):
    """The run folder cannot be used; nothing in it was changed, unless a write to it failed midway."""


class RunDir:
    """A run folder this process holds the lock of. Use `RunDir.open`."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd: int | None = lock_fd

    @classmethod
    def open(cls, path: str | Path, *, overwrite: bool, resume: bool = False) -> RunDir:
        """Take the folder for a new run, or raise RunDirError and leave it as it is.

        `overwrite` removes what an earlier run wrote. `resume` keeps it, to be gone on with.
        """
        folder = Path(path).absolute()
        _make_folder(folder)
        if not (folder / LOCK_NAME).exists():
            _refuse_foreign(folder)
        run_dir = cls(folder, _lock(folder))
        try:
            if not resume:
                run_dir._clear(overwrite)
        except BaseException:
            run_dir.close()
            raise
        return run_dir

    def close(self) -> None:
        """Let another run have the folder."""
        if self._lock_fd is not None:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories.parquet"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def trace(self) -> Path:
        return self.path / "trace.json"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def kvstore(self) -> Path:
        return self.path / "kvstore"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def stalls(self) -> Path:
        return self.path / "stalls.txt"

    def write_config(self, yaml_text: str, overrides: Sequence[str] = ()) -> None:
        """`overrides` are what it was composed with, for `resumed_overrides`."""
        self._replace(self.config, yaml_text)
        self._replace(self.path / _OVERRIDES, json.dumps(list(overrides)) + "\n")

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write summary.json in one go: it is there and whole, or not there. The run is finished."""
        text = json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n"
        self._replace(self.summary, text)

    def draw(self, spans: Iterable[Span]) -> None:
        """Write trace.json."""
        with _told_in_one_line(f"cannot write {self.trace}"):
            write_trace(self.trace, spans)

    def _replace(self, path: Path, text: str) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with _told_in_one_line(f"cannot write {path}"):
                with temporary.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _clear(self, overwrite: bool) -> None:
        kept = next((name for name in RESULTS if _holds_something(self.path / name)), None)
        if kept is not None and not overwrite:
            state = "a finished run" if kept == "summary.json" else f"an unfinished run ({kept})"
            raise RunDirError(
                f"run_dir '{self.path}' holds {state}; "
                "choose another run_dir, or pass overwrite=true to replace it"
            )
        for name in ALL_NAMES:
            with _told_in_one_line(f"cannot remove {self.path / name}"):
                _remove(self.path / name)


def resumed_overrides(overrides: Sequence[str]) -> list[str]:
    """With `resume=RUN_DIR` among them: that run's own, then those of the rest that it has not."""
    run_dir = next((o.partition("=")[2] for o in overrides if o.startswith("resume=")), "null")
    if run_dir in ("null", ""):
        return list(overrides)
    try:
        before = json.loads((Path(run_dir) / _OVERRIDES).read_text(encoding="utf-8"))
        assert all(isinstance(override, str) for override in before)
    except (OSError, ValueError, TypeError, AssertionError):
        return list(overrides)  # what is wrong with the folder is said where it is judged
    given = {_key_of(override) for override in overrides}
    return [o for o in before if _key_of(o) not in given | {"run_dir", "overwrite"}] + list(overrides)


def _key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunDirError(f"run_dir '{folder}' is a file, not a folder; choose another run_dir")
    with _told_in_one_line(f"cannot create run_dir '{folder}'"):
        folder.mkdir(parents=True, exist_ok=True)


def _refuse_foreign(folder: Path) -> None:
    """Raise if a folder no run has used has a file in a place a run would write."""
    foreign = next((name for name in ALL_NAMES if os.path.lexists(folder / name)), None)
    if foreign is not None:
        state = "a finished run" if foreign == "summary.json" else f"'{foreign}'"
        raise RunDirError(
            f"run_dir '{folder}' holds {state} that this program has no record of writing; "
            "choose another run_dir, or remove it yourself"
        )


def _lock(folder: Path) -> int:
    """Lock the folder, and show on the way that it can be written."""
    with _told_in_one_line(f"cannot write in run_dir '{folder}'"):
        lock_fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(lock_fd, folder)
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            os.fsync(lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
    return lock_fd


def _take(lock_fd: int, folder: Path) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        pid, _, host = os.pread(lock_fd, 200, 0).decode(errors="replace").strip().partition(" ")
        raise RunDirError(
            f"run_dir '{folder}' is in use by a running job (process {pid or '?'} on {host or '?'}); "
            "wait for it, or choose another run_dir"
        ) from error


@contextmanager
def _told_in_one_line(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(
            f"{what}: {error.strerror or error}; make room or choose another run_dir"
        ) from error


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _finite(value: object) -> object:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""A `Files` that stops its process at a chosen system call, and one that loses power.

StoppableFiles counts calls; the chosen one does not happen, or half of it does, and from then on every
call fails: the process is dead, what it wrote is in the page cache. VolatileFiles also remembers what was
not yet flushed, and `lose_power` takes that away.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvstore.files import PosixFiles


class Stopped(OSError):
    """The process is dead. An OSError, because nothing in a store may tell it from one."""


class StoppableFiles(PosixFiles):
    """The real calls, until number `stop_at`; `half` lets that one write half of its bytes first."""

    def __init__(self, stop_at: int | None = None, *, half: bool = False) -> None:
        self.num_calls = 0
        self._stop_at = stop_at
        self._half = half
        self._lock = threading.Lock()

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        self._step()
        return super().open(path, flags, mode)

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        self._step()
        return super().preadv(fd, views, offset)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        try:
            self._step()
        except Stopped:
            if self._half and self.num_calls == self._stop_at:
                self._write_half(fd, views, offset)
            raise
        return super().pwritev(fd, views, offset)

    def fdatasync(self, fd: int) -> None:
        self._step()
        super().fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step()
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def size(self, path: Path) -> int:
        self._step()
        return super().size(path)

    def is_unlinked(self, fd: int) -> bool:
        self._step()
        return super().is_unlinked(fd)

    def list(self, path: Path) -> list[str]:
        self._step()
        return super().list(path)

    def _step(self) -> None:
        with self._lock:
            if self._stop_at is not None and self.num_calls >= self._stop_at:
                raise Stopped(f"the process was stopped at call {self._stop_at}")
            self.num_calls += 1
            if self.num_calls == self._stop_at:
                raise Stopped(f"the process was stopped at call {self._stop_at}")

    def _write_half(self, fd: int, views: Sequence[memoryview], offset: int) -> None:
        data = b"".join(views)
        # Through a descriptor of its own: this one may take nothing but whole pages.
        with open(f"/proc/self/fd/{fd}", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data[: len(data) // 2], offset)


@dataclass(slots=True)
class _Unsynced:
    """What one write replaced."""

    offset: int
    old: bytes
    old_size: int


@dataclass(slots=True)
class _File:
    path: Path
    unsynced: list[_Unsynced] = field(default_factory=list)


class VolatileFiles(StoppableFiles):
    """Knows what a power cut takes: bytes not flushed, and names of directories not synced."""

    def __init__(self, stop_at: int | None = None, *, half: bool = False) -> None:
        super().__init__(stop_at, half=half)
        self._files: dict[tuple[int, int], _File] = {}
        self._new_names: set[Path] = set()

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        is_new = not path.exists()
        fd = super().open(path, flags, mode)
        if is_new:
            self._new_names.add(path)
            self._files[_identity(fd)] = _File(path)
        self._files.setdefault(_identity(fd), _File(path))
        return fd

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        path = self._files[_identity(fd)].path
        if not path.exists():  # unlinked: a power cut takes all of it anyway
            return super().pwritev(fd, views, offset)
        size, nbytes = path.stat().st_size, sum(map(len, views))
        with path.open("rb") as file:
            file.seek(offset)
            self._files[_identity(fd)].unsynced.append(_Unsynced(offset, file.read(nbytes), size))
        return super().pwritev(fd, views, offset)

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self._files[_identity(fd)].unsynced.clear()

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self._new_names = {name for name in self._new_names if name.parent != path}

    def lose_power(self, *, names_too: bool) -> None:
        """Undo every write that was not flushed; `names_too`: and take files whose name was not."""
        for file in self._files.values():
            if not file.path.exists():
                continue
            with file.path.open("r+b") as raw:
                for write in reversed(file.unsynced):
                    raw.seek(write.offset)
                    raw.write(write.old)
                    raw.truncate(write.old_size)
        if names_too:
            for path in self._new_names:
                path.unlink(missing_ok=True)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino

"""A `Files` that remembers which calls were made, and can be told to hold up or refuse some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstore.files import PosixFiles

Call = tuple[str, int]
"""What was called, and the bytes it was to move (0: none)."""


class RecordingFiles(PosixFiles):
    """The real calls. `before` is called with each and may wait or raise OSError."""

    def __init__(self, before: Callable[[str], None] = lambda call: None) -> None:
        self.calls: list[Call] = []
        self.before = before
        self._lock = threading.Lock()

    def named(self, name: str) -> list[int]:
        """Bytes of every call of `name`, in order."""
        with self._lock:
            return [nbytes for call, nbytes in self.calls if call == name]

    def forget(self) -> None:
        with self._lock:
            self.calls.clear()

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        self._note("open")
        return super().open(path, flags, mode)

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        self._note("preadv", sum(map(len, views)))
        return super().preadv(fd, views, offset)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        self._note("pwritev", sum(map(len, views)))
        return super().pwritev(fd, views, offset)

    def fdatasync(self, fd: int) -> None:
        self._note("fdatasync")
        super().fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        self._note("sync_directory")
        super().sync_directory(path)

    def size(self, path: Path) -> int:
        self._note("size")
        return super().size(path)

    def is_unlinked(self, fd: int) -> bool:
        self._note("is_unlinked")
        return super().is_unlinked(fd)

    def list(self, path: Path) -> list[str]:
        self._note("list")
        return super().list(path)

    def _note(self, call: str, nbytes: int = 0) -> None:
        with self._lock:
            self.calls.append((call, nbytes))
        self.before(call)

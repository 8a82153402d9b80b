"""The system calls a store makes on its directory: the seam where tests stop it, or damage what it reads.

One method is one call and nothing more; loops over short reads and writes are in kvstore.direct_io.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Thread-safe. Every method raises OSError as the system call does."""

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int: ...

    def close(self, fd: int) -> None: ...

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int: ...

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int: ...

    def fdatasync(self, fd: int) -> None: ...

    def sync_directory(self, path: Path) -> None:
        """Make the names in directory `path` durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Move `source` to `target` at once, replacing what is there."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Give the file `source` the name `target` too, which must be free."""
        ...

    def unlink(self, path: Path) -> None: ...

    def size(self, path: Path) -> int:
        """Bytes in the file."""
        ...

    def is_unlinked(self, fd: int) -> bool:
        """Has the open file lost its last name?"""
        ...

    def list(self, path: Path) -> list[str]:
        """Names in directory `path`, in no order."""
        ...


class PosixFiles:
    """The operating system's own."""

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        return os.preadv(fd, views, offset)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(fd, views, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def size(self, path: Path) -> int:
        return os.stat(path).st_size

    def is_unlinked(self, fd: int) -> bool:
        return os.fstat(fd).st_nlink == 0

    def list(self, path: Path) -> list[str]:
        return os.listdir(path)

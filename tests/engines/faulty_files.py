"""File systems that misbehave on purpose, below the store and its verification."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

from kvstore.files import PosixFiles
from tests.engines.fakes import Gate


class FlippingFiles(PosixFiles):
    """From some moment on, flips one bit in a share of what is read; in the first read for sure."""

    def __init__(self, rate: float, seed: int) -> None:
        self.flipping = False
        self.num_flipped = 0
        self._rate = rate
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        num_read = super().preadv(fd, views, offset)
        with self._lock:
            if self.flipping and num_read and (not self.num_flipped or self._random.random() < self._rate):
                self._flip(views, self._random.randrange(num_read))
                self.num_flipped += 1
        return num_read

    def _flip(self, views: Sequence[memoryview], place: int) -> None:
        for view in views:
            if place < view.nbytes:
                view.cast("B")[place] ^= 1 << self._random.randrange(8)
                return
            place -= view.nbytes


class FailingFiles(PosixFiles):
    """From some moment on it takes no more bytes."""

    def __init__(self, error: int) -> None:
        self.failing = False
        self.num_failed = 0
        self._error = error

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and self._error == errno.EROFS:
            self._fail_if_due(path)
        return super().open(path, flags, mode)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        self._fail_if_due(fd)
        return super().pwritev(fd, views, offset)

    def _fail_if_due(self, what: object) -> None:
        if self.failing:
            self.num_failed += 1
            raise OSError(self._error, os.strerror(self._error), str(what))


class GatedFiles(PosixFiles):
    """Reads and writes wait each at a gate, and then go on."""

    def __init__(self) -> None:
        self.reads, self.writes = Gate(), Gate()

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        self.reads.pass_through()
        return super().preadv(fd, views, offset)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        self.writes.pass_through()
        return super().pwritev(fd, views, offset)

"""The baseline: what Python gets out of the disk with no store on top.

Threads take offsets from one shared list and move whole blocks between a plain file and page-aligned
memory, with O_DIRECT where the store uses it too. Nothing is allocated, checked or looked up per block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvstore.store import Bytes

_Move = tuple[int, list[memoryview]]
"""Where in the file, and the memory."""


class RawFile:
    """One plain file of equal pieces, moved by `num_threads` threads. Use as a context manager."""

    def __init__(self, path: Path, *, num_threads: int, direct: bool) -> None:
        self._path = path
        self._flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._fd = os.open(path, self._flags, 0o600)
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="raw")

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._threads.shutdown()
        os.close(self._fd)
        self._path.unlink()

    def start_anew(self) -> None:
        """An empty file in place of this one, as an appending store has it."""
        os.close(self._fd)
        self._path.unlink()
        self._fd = os.open(self._path, self._flags, 0o600)

    def read(self, offsets: Sequence[int], slots: Sequence[Bytes]) -> None:
        """Fill each slot from its offset. Raises OSError, also where the file ends early."""
        self._move_all(os.preadv, [(at, [slot.data]) for at, slot in zip(offsets, slots, strict=True)])

    def write(self, slots: Sequence[Bytes], slots_per_call: int, *, preallocate: bool) -> None:
        """Put the slots back to back from the file's start; `preallocate`: take the file's space first."""
        if preallocate:
            os.posix_fallocate(self._fd, 0, sum(map(len, slots)))
        moves, offset = [], 0
        for start in range(0, len(slots), slots_per_call):
            views = [slot.data for slot in slots[start : start + slots_per_call]]
            moves.append((offset, views))
            offset += sum(map(len, views))
        self._move_all(os.pwritev, moves)

    def _move_all(self, call: Callable[[int, list[memoryview], int], int], moves: Sequence[_Move]) -> None:
        shared = iter(moves)  # taking the next one is one step under the GIL
        ends = [self._threads.submit(self._drain, call, shared) for _ in range(self._num_threads)]
        for end in ends:
            end.result()

    def _drain(self, call: Callable[[int, list[memoryview], int], int], moves: Iterator[_Move]) -> None:
        fd = self._fd
        for offset, views in moves:
            moved, wanted = call(fd, views, offset), sum(map(len, views))
            if moved != wanted:
                raise OSError(f"the raw file moved {moved} bytes of {wanted} at {offset}")

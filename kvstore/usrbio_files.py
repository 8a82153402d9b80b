"""Files of a 3FS mount, read and written through USRBIO rings instead of FUSE.

Decides how a read or write of any length becomes ring requests and back; opening, syncing, listing and the
rest go through the mount as ever. Written from 3FS's documented API (module `hf3fs_fuse.io`, which only this
file imports) and run against a fake of it in the tests: not yet run on hardware.

    thread   has two lanes: reading, writing        rings serve one direction, and one thread
    lane     ring + bounce memory                   data moves in memory shared with the FUSE process only
    call     cut into requests of REQUEST_BYTES, all prepared, submitted once, waited for with a deadline

Requests complete in any order. A request may move fewer bytes than asked: its rest is asked for again until
nothing comes, which is the file's end or a hole; then the call is short, as preadv would be. A lane whose
requests are unanswered at the deadline is set aside for good, since they may still write to its memory.
A descriptor is registered as long as it is open: one that is closed first could name another file to 3FS.
The file length that `size` tells may lag by seconds behind what another process wrote to an open file.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kvstore.errors import StoreError
from kvstore.files import PosixFiles
from kvstore.store import Bytes

REQUEST_BYTES = 1 << 20
BOUNCE_BYTES = 16 << 20


class Completion(Protocol):
    """One request's end."""

    @property
    def result(self) -> int:
        """Bytes moved, or the negative errno."""
        ...

    @property
    def userdata(self) -> Any: ...


class Ring(Protocol):
    """Requests of one direction; one thread at a time."""

    def prepare(self, iov: Any, read: bool, fd: int, off: int, userdata: object = None) -> object: ...

    def submit(self) -> object: ...

    def wait(
        self, *, max_results: int = 0, min_results: int = 0, timeout: timedelta | None = None
    ) -> Sequence[Completion]: ...


class Usrbio(Protocol):
    """What is used of the module `hf3fs_fuse.io`. Its functions raise OSError."""

    def extract_mount_point(self, path: str) -> str | None: ...

    def make_iovec(self, shm: SharedMemory, hf3fs_mount_point: str) -> Any:
        """Something to slice by bytes."""
        ...

    def make_ioring(self, hf3fs_mount_point: str, entries: int, for_read: bool = True) -> Ring: ...

    def register_fd(self, fd: int) -> object: ...

    def deregister_fd(self, fd: int) -> object: ...


class UsrbioFiles(PosixFiles):
    """The Files of one directory on a 3FS mount."""

    def __init__(self, directory: Path, *, deadline_s: float, usrbio: Usrbio | None = None) -> None:
        """`deadline_s` bounds every read and write. Raises StoreError where `directory` is not on 3FS."""
        self._usrbio = _installed() if usrbio is None else usrbio
        self._deadline_s = deadline_s
        mount = self._usrbio.extract_mount_point(str(directory.absolute()))
        if mount is None:
            raise StoreError(
                f"kvstore.path {directory} is on no 3FS mount; mount 3FS there, or use kvstore=ssd"
            )
        self._mount = mount
        self._lanes = threading.local()
        self.abandoned: list[_Lane] = []
        """Lanes set aside with unanswered requests. They hold their memory as long as this object."""

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        fd = super().open(path, flags, mode)
        try:
            self._usrbio.register_fd(fd)
        except BaseException:
            super().close(fd)
            raise
        return fd

    def close(self, fd: int) -> None:
        self._usrbio.deregister_fd(fd)
        super().close(fd)

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        lane = self._lane(for_read=True)
        num_read = self._move(lane, fd, offset, views)
        lane.copy_out(views, num_read)
        return num_read

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        lane = self._lane(for_read=False)
        lane.copy_in(views)
        return self._move(lane, fd, offset, views)

    def _lane(self, *, for_read: bool) -> _Lane:
        name = "read" if for_read else "write"
        lane: _Lane | None = getattr(self._lanes, name, None)
        if lane is None or lane.unusable:
            lane = _Lane(self._usrbio, self._mount, for_read=for_read)
            setattr(self._lanes, name, lane)
        return lane

    def _move(self, lane: _Lane, fd: int, offset: int, views: Sequence[memoryview]) -> int:
        nbytes = min(sum(len(view) for view in views), BOUNCE_BYTES)
        try:
            return lane.move(fd, offset, nbytes, time.monotonic() + self._deadline_s)
        finally:
            if lane.unusable:
                self.abandoned.append(lane)


class _Lane:
    """One thread's ring of one direction, and the memory its requests move data in."""

    def __init__(self, usrbio: Usrbio, mount: str, *, for_read: bool) -> None:
        self._for_read = for_read
        self._memory = SharedMemory(create=True, size=BOUNCE_BYTES)
        try:
            self._iovec = usrbio.make_iovec(self._memory, mount)
        finally:
            self._memory.unlink()  # both sides have it mapped: it goes with them
        self._ring = usrbio.make_ioring(mount, BOUNCE_BYTES // REQUEST_BYTES, for_read)
        self.unusable = False
        """Are there requests that may still be carried out?"""

    def copy_in(self, views: Sequence[memoryview]) -> None:
        """Fill the bounce memory from `views`, as far as it goes."""
        bounce, start = self._bounce(), 0
        for view in views:
            nbytes = min(len(view), BOUNCE_BYTES - start)
            bounce[start : start + nbytes] = np.frombuffer(view[:nbytes], np.uint8)
            start += nbytes

    def copy_out(self, views: Sequence[memoryview], num_bytes: int) -> None:
        """Fill `views` with the first `num_bytes` bytes of the bounce memory."""
        bounce, start = self._bounce(), 0
        for view in views:
            nbytes = min(len(view), num_bytes - start)
            np.frombuffer(view[:nbytes], np.uint8)[:] = bounce[start : start + nbytes]
            start += nbytes

    def _bounce(self) -> Bytes:
        """The memory, as long as the caller's variable lives: SharedMemory cannot close under a view."""
        buffer = self._memory.buf
        assert buffer is not None
        return np.frombuffer(buffer, np.uint8)

    def move(self, fd: int, offset: int, nbytes: int, end_s: float) -> int:
        """Move the first `nbytes` bytes of the bounce memory from or to `offset`; return how many came.

        Raises OSError, ETIMEDOUT at `end_s`.
        """
        starts = range(0, nbytes, REQUEST_BYTES)
        wanted = [min(REQUEST_BYTES, nbytes - start) for start in starts]
        moved = [0] * len(wanted)
        unfinished = list(range(len(wanted)))
        while unfinished:
            for i in unfinished:
                start = starts[i] + moved[i]
                self._prepare(fd, offset, start, starts[i] + wanted[i], i)
            results = self._complete(len(unfinished), end_s)
            failed = min(results.values())
            if failed < 0:
                raise OSError(-failed, os.strerror(-failed))
            for i, result in results.items():
                moved[i] += result
            unfinished = [i for i, result in results.items() if result > 0 and moved[i] < wanted[i]]
        return _length_without_gap(moved, wanted)

    def _prepare(self, fd: int, offset: int, start: int, stop: int, number: int) -> None:
        try:
            self._ring.prepare(self._iovec[start:stop], self._for_read, fd, offset + start, userdata=number)
        except OSError:
            # A prepared request may be carried out before it is submitted.
            self.unusable = number > 0
            raise

    def _complete(self, num_requests: int, end_s: float) -> dict[int, int]:
        """Submit what is prepared and wait for all of it: each request's number and result."""
        self.unusable = True
        self._ring.submit()
        results: dict[int, int] = {}
        while len(results) < num_requests:
            left_s, left = end_s - time.monotonic(), num_requests - len(results)
            if left_s <= 0:
                raise OSError(errno.ETIMEDOUT, f"{left} of {num_requests} USRBIO requests unanswered")
            done = self._ring.wait(max_results=left, min_results=left, timeout=timedelta(seconds=left_s))
            results |= {completion.userdata: completion.result for completion in done}
        self.unusable = False
        return results


def _length_without_gap(moved: Sequence[int], wanted: Sequence[int]) -> int:
    total = 0
    for got, asked in zip(moved, wanted, strict=True):
        total += got
        if got < asked:
            break
    return total


def _installed() -> Usrbio:
    try:
        import hf3fs_fuse.io
    except ImportError as error:
        raise StoreError(
            f"kvstore=3fs needs hf3fs_fuse of a 3FS build on PYTHONPATH ({error}); "
            "without it kvstore=ssd reads the same mount through FUSE"
        ) from error
    usrbio: Usrbio = hf3fs_fuse.io
    return usrbio

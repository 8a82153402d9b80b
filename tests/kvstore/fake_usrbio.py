"""3FS's `hf3fs_fuse.io` on an ordinary directory, after its documentation and Python binding.

What the real one promises, and no more: requests may start before they are submitted, complete in any order
and move fewer bytes than asked. What it forbids, here raises `Misuse` (or the errno that the real one
gives). A test may decide each request's outcome with `plan`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")


class Misuse(AssertionError):
    """The caller did what 3FS leaves undefined."""


@dataclass(frozen=True)
class Request:
    """What a plan is asked about; `number` counts all requests from 0."""

    number: int
    read: bool
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Outcome:
    """Move at most `limit` bytes (None: all), or answer `error`; not before `after` is set."""

    limit: int | None = None
    error: int = 0
    after: threading.Event | None = None


class Iovec:
    """Memory shared with the FUSE process, or a slice of it."""

    def __init__(self, fake: FakeUsrbio, shm: SharedMemory, start: int, stop: int, link: Path | None) -> None:
        self.fake, self.shm, self.start, self.stop, self._link = fake, shm, start, stop, link

    def __getitem__(self, part: slice) -> Iovec:
        first, last, step = part.indices(self.stop - self.start)
        if step != 1:
            raise ValueError("step not 1 when slicing iovec")
        return Iovec(self.fake, self.shm, self.start + first, self.start + max(first, last), None)

    def __del__(self) -> None:
        if self._link is not None:
            self._link.unlink()


@dataclass
class Completion:
    result: int
    userdata: object


@dataclass
class _Registered:
    file: int
    """A duplicate: the file as it was registered, whatever the number names later."""
    inode: tuple[int, int]
    mode: int


@dataclass
class _Job:
    """A prepared request."""

    request: Request
    file: int
    iov: Iovec
    userdata: object


@dataclass
class Ring:
    """One direction, `entries` requests from prepare() to wait(); all calls from one thread."""

    fake: FakeUsrbio
    entries: int
    for_read: bool
    _thread: int | None = None
    _waiting: list[_Job] = field(default_factory=list)
    _num_held: int = 0
    _done: queue.SimpleQueue[Completion] = field(default_factory=queue.SimpleQueue)

    def prepare(self, iov: Iovec, read: bool, fd: int, off: int, userdata: object = None) -> Ring:
        self._check_thread()
        if iov.fake is not self.fake:
            raise Misuse("the buffer lies in no iovec of this mount")
        nbytes = iov.stop - iov.start
        if nbytes <= 0 or read != self.for_read:
            raise OSError(errno.EINVAL, "wrong length or direction")
        file = self.fake.registered_file(fd, read=read)
        if self._num_held == self.entries:
            raise OSError(errno.EAGAIN, "ring is full")
        self._num_held += 1
        job = _Job(self.fake.next_request(read, off, nbytes), file, iov, userdata)
        self._waiting.append(job)
        if self.fake.random.random() < 0.2:  # the FUSE process also looks by itself
            self.submit()
        return self

    def submit(self) -> Ring:
        self._check_thread()
        jobs, self._waiting = self._waiting, []
        self.fake.random.shuffle(jobs)
        for job in jobs:
            self.fake.jobs.put((self, job))
        return self

    def wait(
        self, *, max_results: int = 0, min_results: int = 0, timeout: timedelta | None = None
    ) -> list[Completion]:
        """Fewer than `min_results` only at the timeout."""
        self._check_thread()
        most = max(max_results, min_results, 1)
        end_s = time.monotonic() + (3600.0 if timeout is None else timeout.total_seconds())
        results: list[Completion] = []
        while len(results) < most:
            left_s = end_s - time.monotonic() if len(results) < min_results else 0.0
            try:
                results.append(self._done.get(timeout=max(0.0, left_s)))
            except queue.Empty:
                break
        self._num_held -= len(results)
        return results

    def complete(self, completion: Completion) -> None:
        self._done.put(completion)

    def _check_thread(self) -> None:
        me = threading.get_ident()
        self._thread = self._thread or me
        if self._thread != me:
            raise Misuse("a ring is used by two threads")


class FakeUsrbio:
    """Stands for the module and for the FUSE process behind it; stop() at the end."""

    def __init__(
        self, mount: Path, *, plan: Callable[[Request], Outcome] = lambda _: Outcome(), num_workers: int = 3
    ) -> None:
        self.mount = mount
        self.plan = plan
        self.random = random.Random(0)
        self.jobs: queue.SimpleQueue[tuple[Ring, _Job] | None] = queue.SimpleQueue()
        self.requests: list[Request] = []
        self._registered: dict[int, _Registered] = {}
        self._lock = threading.Lock()
        (mount / "3fs-virt" / "iovs").mkdir(parents=True)
        self._workers = [threading.Thread(target=self._serve, daemon=True) for _ in range(num_workers)]
        for worker in self._workers:
            worker.start()

    # -- the module's functions ------------------------------------------------------------------------

    def extract_mount_point(self, path: str) -> str | None:
        return str(self.mount) if Path(path).is_relative_to(self.mount) else None

    def make_iovec(
        self, shm: SharedMemory, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1
    ) -> Iovec:
        if block_size:
            raise NotImplementedError("iovecs of several blocks")
        memory = Path("/dev/shm") / shm.name.lstrip("/")
        if not memory.exists():
            raise Misuse("the shared memory was unlinked before 3FS could map it")
        link = Path(hf3fs_mount_point) / "3fs-virt" / "iovs" / str(uuid.uuid4())
        link.symlink_to(memory)
        return Iovec(self, shm, 0, shm.size, link)

    def make_ioring(self, hf3fs_mount_point: str, entries: int, for_read: bool = True) -> Ring:
        if Path(hf3fs_mount_point) != self.mount:
            raise OSError(errno.EINVAL, "not a 3FS mount")
        return Ring(self, entries, for_read)

    def register_fd(self, fd: int) -> None:
        status = os.fstat(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if not path.is_relative_to(self.mount):
            raise OSError(errno.EBADF, "not a file of a 3FS mount")
        with self._lock:
            if fd in self._registered:
                raise OSError(errno.EINVAL, "registered already")
            mode = os.O_ACCMODE & _flags_of(fd)
            self._registered[fd] = _Registered(os.dup(fd), (status.st_dev, status.st_ino), mode)

    def deregister_fd(self, fd: int) -> None:
        with self._lock:
            registered = self._registered.pop(fd, None)
        if registered is not None:
            self._check_same_file(fd, registered)
            os.close(registered.file)

    # -- behind it -------------------------------------------------------------------------------------

    def registered_file(self, fd: int, *, read: bool) -> int:
        """A descriptor of the file of `fd`, the caller's to close."""
        with self._lock:
            registered = self._registered.get(fd)
            if registered is None:
                raise OSError(errno.EBADF, "not registered")
            self._check_same_file(fd, registered)
            if registered.mode == (os.O_WRONLY if read else os.O_RDONLY):
                raise OSError(errno.EACCES, "opened for the other direction")
            return os.dup(registered.file)

    def next_request(self, read: bool, offset: int, nbytes: int) -> Request:
        with self._lock:
            request = Request(len(self.requests), read, offset, nbytes)
            self.requests.append(request)
            return request

    def stop(self) -> None:
        """End the threads; raises Misuse if a descriptor was never deregistered."""
        for _ in self._workers:
            self.jobs.put(None)
        for worker in self._workers:
            worker.join(10.0)
        if self._registered:
            raise Misuse(f"{len(self._registered)} descriptors are registered still")

    def _check_same_file(self, fd: int, registered: _Registered) -> None:
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise Misuse("a descriptor was closed before it was deregistered") from error
        if (status.st_dev, status.st_ino) != registered.inode:
            raise Misuse("a registered descriptor names another file now")

    def _serve(self) -> None:
        while (task := self.jobs.get()) is not None:
            ring, job = task
            outcome = self.plan(job.request)
            if outcome.after is not None:
                outcome.after.wait(60.0)
            ring.complete(Completion(_carry_out(job, outcome), job.userdata))


def _carry_out(job: _Job, outcome: Outcome) -> int:
    """Bytes moved, or the negative errno. A read ends at a hole."""
    request, iov = job.request, job.iov
    try:
        if outcome.error:
            return -outcome.error
        nbytes = request.nbytes if outcome.limit is None else min(request.nbytes, outcome.limit)
        if not request.read:
            data = bytes(iov.shm.buf[iov.start : iov.start + nbytes])
            return _buffered(job.file, os.O_WRONLY, lambda fd: os.pwrite(fd, data, request.offset))
        found = _buffered(job.file, os.O_RDONLY, lambda fd: _read_to_hole(fd, request.offset, nbytes))
        iov.shm.buf[iov.start : iov.start + len(found)] = found
        return len(found)
    except OSError as error:
        return -(error.errno or errno.EIO)
    finally:
        os.close(job.file)


def _buffered(file: int, mode: int, use: Callable[[int], _T]) -> _T:
    """Open the file again: USRBIO knows no O_DIRECT, whatever the caller's descriptor was opened with."""
    fd = os.open(f"/proc/self/fd/{file}", mode | os.O_CLOEXEC)
    try:
        return use(fd)
    finally:
        os.close(fd)


def _read_to_hole(fd: int, offset: int, nbytes: int) -> bytes:
    try:
        hole = os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError:  # past the end
        return b""
    return os.pread(fd, min(nbytes, hole - offset), offset)


def _flags_of(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL)

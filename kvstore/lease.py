"""Which one process owns a store directory: a lease that is kept alive by a heartbeat.

    lease.<epoch>     who holds it, a counter that its holder keeps raising, and whether it was given back

Epochs only grow, and a file is created only if it is not there (O_EXCL), so one contender wins each. The
holder of epoch n is superseded as soon as a higher epoch exists or its own file is gone. A contender
creates n+1 when n was given back, when n's holder is known to be dead (a process of this host that is not
there any more), or when n's file has not changed for `ttl_s` by the contender's own monotonic clock: clocks
of two hosts are never compared, and no time stamp of a file is trusted. Every look opens the file anew, which
is what makes a network file system ask its server.

Where a full disk takes no new file, the file of n, which is nobody's then, gets the name of n+1 too (a link
is as exclusive) and is written in place: or nobody could evict what fills the disk.

Between a holder's last look and what it does then, another may take over: a lease bounds how long two
processes may both evict, it cannot exclude it. To evict twice costs misses, never wrong bytes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvstore.files import Files
from kvstore.process_identity import Process

logger = logging.getLogger(__name__)

LEASE_BYTES = 512
BEATS_PER_TTL = 4
_NAME = re.compile(r"lease\.(\d{8,})")


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """What stood in a lease file at one look."""

    epoch: int
    content: bytes

    @property
    def record(self) -> LeaseRecord | None:
        """None where it is torn: its holder died while it wrote, or is writing."""
        return LeaseRecord.decode(self.content)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a holder writes into its lease file."""

    holder_id: str
    """Of the lease object that wrote it; one process may have several."""
    process: Process
    beat: int
    released: bool

    def encode(self) -> bytes:
        """LEASE_BYTES bytes: a line of JSON, padded."""
        text = json.dumps(
            {
                "holder_id": self.holder_id,
                "host": self.process.host,
                "pid": self.process.pid,
                "started": self.process.started,
                "beat": self.beat,
                "released": self.released,
            }
        )
        return (text.ljust(LEASE_BYTES - 1) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes) -> LeaseRecord | None:
        try:
            fields = json.loads(content)
            process = Process(fields["host"], int(fields["pid"]), fields["started"])
            return cls(fields["holder_id"], process, int(fields["beat"]), bool(fields["released"]))
        except (ValueError, TypeError, KeyError):
            return None


class Succession:
    """When a contender may take over. Pure: it is told what was seen and when."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._seen: LeaseFile | None = None
        self._since_s = 0.0

    def next_epoch(self, newest: LeaseFile | None, *, holder_is_dead: bool, now_s: float) -> int | None:
        """The epoch to create now, or None: wait. `newest` is the highest epoch's file, if there is any."""
        if newest is None:
            return 1
        if newest != self._seen:
            self._seen, self._since_s = newest, now_s
        record = newest.record
        released = record is not None and record.released
        if released or holder_is_dead or now_s - self._since_s >= self._ttl_s:
            return newest.epoch + 1
        return None


class DirectoryLease:
    """One contender for the lease of `directory`, and its holder while `held`. Thread-safe.

    Without start() it does nothing by itself: then the caller makes each step().
    """

    def __init__(
        self,
        directory: Path,
        *,
        ttl_s: float,
        files: Files,
        clock: Callable[[], float],
        process: Process | None = None,
    ) -> None:
        """`clock`: monotonic seconds. `process`: this one, unless a test says another."""
        self._directory = directory
        self._ttl_s = ttl_s
        self._files = files
        self._clock = clock
        self._process = process or Process.this()
        self._holder_id = uuid.uuid4().hex
        self._succession = Succession(ttl_s)
        self._epoch: int | None = None
        self._beat = 0
        self._beaten_s = 0.0
        self._warned = False
        self._refused: str | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Held as of the last heartbeat, which is less than `ttl_s` ago. No I/O; see confirm()."""
        return self._epoch is not None and self._clock() - self._beaten_s < self._ttl_s

    @property
    def epoch(self) -> int | None:
        """The epoch this contender created and was not yet seen to lose."""
        return self._epoch

    @property
    def refused(self) -> str | None:
        """What the directory answered to the last try to take or keep the lease; None: all was well."""
        return self._refused

    def start(self) -> None:
        """Take the lease if it is free; a daemon thread goes on trying, or keeping it, until close()."""
        self.step()
        self._thread = threading.Thread(target=self._run, name="kv-lease", daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Beat if the lease is held, else look whether it may be taken; log what the directory refuses."""
        with self._lock:
            self._step()

    def confirm(self) -> bool:
        """Held, and a fresh look at the directory says so too: ask before every eviction.

        Waits for a step in progress, `ttl_s` at most.
        """
        if not self._lock.acquire(timeout=self._ttl_s):
            return False
        try:
            return self._epoch is not None and self._step() and self.held
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give the lease back, so that another can take it at once. Idempotent."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(self._ttl_s)
        if not self._lock.acquire(timeout=self._ttl_s):
            return  # its medium does not answer; the lease ends by itself
        try:
            if self._epoch is not None:
                self._keep(released=True)
        except OSError as error:
            self._warn(error)
        finally:
            self._epoch = None
            self._lock.release()

    def _run(self) -> None:
        while not self._closing.wait(self._ttl_s / BEATS_PER_TTL):
            self.step()

    def _step(self) -> bool:
        """Did the directory let it beat, or look? The caller holds the lock."""
        try:
            if self._closing.is_set():
                return False
            if self._epoch is not None:
                self._keep(released=False)
            else:
                self._contend()
        except OSError as error:
            self._refused = str(error)
            self._warn(error)
            return False
        self._refused = None
        return True

    def _keep(self, *, released: bool) -> None:
        """Beat once more, or find out that somebody else took over."""
        assert self._epoch is not None
        now_s = self._clock()
        if self._is_superseded(self._epoch):
            logger.warning("another process took over the lease of KV store %s", self._directory)
            self._epoch = None
            return
        self._beat += 1
        self._write(self._epoch, os.O_WRONLY, released=released)
        self._beaten_s = now_s

    def _is_superseded(self, epoch: int) -> bool:
        """Is there a higher epoch, or does `epoch` itself not stand as this contender wrote it?"""
        if max(self._epochs(), default=epoch) > epoch:
            return True
        try:
            record = self._look(epoch).record
        except FileNotFoundError:
            return True
        return record is not None and record.holder_id != self._holder_id

    def _contend(self) -> None:
        epochs = self._epochs()
        try:
            newest = self._look(max(epochs)) if epochs else None
        except FileNotFoundError:
            return  # its successor took it away just now
        record = newest.record if newest is not None else None
        dead = record is not None and record.process.is_dead()
        now_s = self._clock()
        epoch = self._succession.next_epoch(newest, holder_is_dead=dead, now_s=now_s)
        if epoch is None:
            return
        try:
            self._create(epoch, newest)
        except FileExistsError:
            return  # another contender was faster
        epochs = self._epochs()
        if max(epochs, default=epoch) > epoch:  # it was decided upon an old look: others went on meanwhile
            self._unlink(epoch)
            return
        self._epoch, self._beaten_s = epoch, now_s
        for old in epochs:
            if old < epoch:
                self._unlink(old)

    def _create(self, epoch: int, before: LeaseFile | None) -> None:
        """Raises FileExistsError where another contender was faster, or OSError."""
        try:
            self._write(epoch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, released=False)
        except OSError as error:
            if before is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            try:
                self._files.link(self._path(before.epoch), self._path(epoch))
            except FileNotFoundError as gone:
                raise FileExistsError(errno.EEXIST, "its successor took it away just now") from gone
            self._write(epoch, os.O_WRONLY, released=False)

    def _look(self, epoch: int) -> LeaseFile:
        """The lease file of `epoch` as it is now. Raises FileNotFoundError, or OSError from the medium."""
        content = bytearray(LEASE_BYTES)
        try:
            fd = self._files.open(self._path(epoch), os.O_RDONLY)
            try:
                num_read = self._files.preadv(fd, [memoryview(content)], 0)
            finally:
                self._files.close(fd)
        except OSError as error:
            if error.errno == errno.ESTALE:  # how NFS says that it was unlinked elsewhere
                raise FileNotFoundError(errno.ENOENT, "unlinked", str(self._path(epoch))) from error
            raise
        return LeaseFile(epoch, bytes(content[:num_read]))

    def _epochs(self) -> list[int]:
        names = map(_NAME.fullmatch, self._files.list(self._directory))
        return [int(name[1]) for name in names if name is not None]

    def _write(self, epoch: int, flags: int, *, released: bool) -> None:
        """Put this contender's record into `epoch`'s file. A new file that cannot be written goes again."""
        content = LeaseRecord(self._holder_id, self._process, self._beat, released).encode()
        fd = self._files.open(self._path(epoch), flags)
        try:
            try:
                if self._files.pwritev(fd, [memoryview(content)], 0) < len(content):
                    raise OSError(errno.ENOSPC, "a lease file takes no 512 bytes")
            finally:
                self._files.close(fd)
        except OSError:
            if flags & os.O_CREAT:
                self._unlink(epoch)
            raise

    def _unlink(self, epoch: int) -> None:
        try:
            self._files.unlink(self._path(epoch))
        except FileNotFoundError:
            return
        except OSError as error:
            self._warn(error)

    def _path(self, epoch: int) -> Path:
        return self._directory / f"lease.{epoch:08d}"

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the lease of KV store %s cannot be kept or taken, nothing is evicted meanwhile: %s",
                self._directory,
                error,
            )

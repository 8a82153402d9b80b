"""The SSD store's segment files: who appends where, and which ones are open.

A writer appends only to segments it created itself (O_EXCL), one weights id each, and starts a new one
when the current one is full; nothing is ever overwritten. Readers, in any process, keep a bounded number
of segments open. Dropping segments, and finding records again without an index, belong here later: a
segment is dropped by unlinking it, and its records describe themselves.

    <weights id>.<writer id>.<sequence number>.kv
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.block_record import SegmentHeader
from kvstore.direct_io import aligned_buffer, read_fully, write_fully
from kvstore.errors import StoreError
from kvstore.keys import WeightsId
from kvstore.layout import PAGE_BYTES, BlockLayout

logger = logging.getLogger(__name__)

MAX_OPEN_TO_READ = 64
MAX_OPEN_TO_APPEND = 4
_NAME_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEGMENT_NAME = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.\d+\.kv")


class UnusableSegment(Exception):
    """The segment is not there, or holds nothing this reader understands."""


@dataclass(slots=True)
class OpenSegment:
    """An open file; it is closed by whoever takes the last user away after it was retired."""

    name: str
    fd: int
    end: int = 0
    """Where the next record goes, in bytes; used when appending."""
    users: int = 0
    retired: bool = False

    def close_if_idle(self) -> None:
        if self.retired and self.users == 0:
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a segment that one writer thread may fill."""

    name: str
    fd: int
    offset: int


class _OpenSegments:
    """The newest `limit` open segments by some name. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, OpenSegment] = {}
        self._lock = threading.Lock()

    def retire(self, key: str) -> None:
        """Close `key`'s segment as soon as nobody uses it. The caller holds the lock."""
        segment = self._open.pop(key, None)
        if segment is not None:
            segment.retired = True
            segment.close_if_idle()

    def keep(self, key: str, segment: OpenSegment) -> None:
        """Put it in front, and retire the one unused longest. The caller holds the lock."""
        self._open.pop(key, None)
        self._open[key] = segment
        while len(self._open) > self._limit:
            self.retire(next(iter(self._open)))

    def release(self, segment: OpenSegment) -> None:
        with self._lock:
            segment.users -= 1
            segment.close_if_idle()

    def close(self) -> None:
        with self._lock:
            for key in list(self._open):
                self.retire(key)


class SegmentReaders(_OpenSegments):
    """Segments open for reading, each checked once against the reader's format."""

    def __init__(self, directory: Path, layout: BlockLayout, *, direct: bool) -> None:
        super().__init__(MAX_OPEN_TO_READ)
        self._directory = directory
        self._expected = SegmentHeader.of(layout, WeightsId(""))
        self._flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._refused: set[str] = set()

    @contextmanager
    def use(self, name: str) -> Iterator[int]:
        """The descriptor of segment `name`. Raises UnusableSegment, or OSError from the medium."""
        segment = self._take(name)
        try:
            yield segment.fd
        finally:
            self.release(segment)

    def _take(self, name: str) -> OpenSegment:
        with self._lock:
            segment = self._open.get(name)
            if segment is not None:
                segment.users += 1
                self.keep(name, segment)
                return segment
        opened = OpenSegment(name, self._open_checked(name), users=1)
        with self._lock:
            if name in self._open:  # another thread was faster: ours serves this call alone
                opened.retired = True
            else:
                self.keep(name, opened)
        return opened

    def _open_checked(self, name: str) -> int:
        if not _SEGMENT_NAME.fullmatch(name):
            raise UnusableSegment(f"{name!r} is not a segment's name")
        try:
            fd = os.open(self._directory / name, self._flags)
        except FileNotFoundError as error:
            raise UnusableSegment(name) from error
        try:
            self._check_header(fd, name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_header(self, fd: int, name: str) -> None:
        page = aligned_buffer(PAGE_BYTES)
        whole = read_fully(fd, [page], 0) == PAGE_BYTES
        header = SegmentHeader.decode(page) if whole else None
        if header is not None and header.same_format_as(self._expected):
            return
        if name not in self._refused:
            self._refused.add(name)
            found = "no segment header" if header is None else header.describe()
            logger.warning("%s holds %s; expected %s", name, found, self._expected.describe())
        raise UnusableSegment(name)


class SegmentWriters(_OpenSegments):
    """The segments this writer appends to, one per weights id."""

    def __init__(
        self, directory: Path, layout: BlockLayout, *, writer_id: str, direct: bool, limit_bytes: int
    ) -> None:
        super().__init__(MAX_OPEN_TO_APPEND)
        if not _NAME_PART.fullmatch(writer_id):
            raise StoreError(f"a writer id is 1..64 of A-Z a-z 0-9 _ -, got {writer_id!r}")
        self._directory = directory
        self._layout = layout
        self._writer_id = writer_id
        self._flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._limit_bytes = limit_bytes
        self._sequence = 0

    @contextmanager
    def reserve(self, weights_id: WeightsId, nbytes: int) -> Iterator[Span]:
        """The next `nbytes` of the current segment of `weights_id`, or of a new one. Raises OSError."""
        with self._lock:
            segment = self._open.get(weights_id)
            if segment is None or segment.end + nbytes > self._limit_bytes:
                segment = self._create(weights_id)
            self._keep_current(weights_id, segment)
            span = Span(segment.name, segment.fd, segment.end)
            segment.end += nbytes
            segment.users += 1
        try:
            yield span
        finally:
            self.release(segment)

    def _keep_current(self, weights_id: WeightsId, segment: OpenSegment) -> None:
        """Make it the segment of `weights_id`, in place of a full one. The caller holds the lock."""
        if self._open.get(weights_id) is not segment:
            self.retire(weights_id)
        self.keep(weights_id, segment)

    def _create(self, weights_id: WeightsId) -> OpenSegment:
        assert _NAME_PART.fullmatch(weights_id), weights_id
        while True:
            self._sequence += 1
            name = f"{weights_id}.{self._writer_id}.{self._sequence:06d}.kv"
            try:
                fd = os.open(self._directory / name, self._flags | os.O_CREAT | os.O_EXCL, 0o644)
                break
            except FileExistsError:
                continue
        page = aligned_buffer(PAGE_BYTES)
        page[:] = np.frombuffer(SegmentHeader.of(self._layout, weights_id).encode(), np.uint8)
        try:
            write_fully(fd, [page], 0)
        except OSError:
            os.close(fd)
            (self._directory / name).unlink(missing_ok=True)
            raise
        return OpenSegment(name, fd, end=PAGE_BYTES)

"""The segments a process has open for reading: a bounded number, and none that it has not used lately.

Each is checked once, when it is opened: what is not there, or is of another format or version, is unusable
and never misread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore.block_record import FORMAT_VERSION, SegmentHeader, UnreadableSegment, describe_layout
from kvstore.direct_io import aligned_buffer, read_fully
from kvstore.files import Files
from kvstore.layout import PAGE_BYTES, BlockLayout
from kvstore.segment_files import OpenSegment, OpenSegments, is_segment_name

logger = logging.getLogger(__name__)

MAX_OPEN_TO_READ = 64
IDLE_S = 10.0
"""Seconds after which a segment that is not read is closed, with the next read of another one."""


class UnusableSegment(Exception):
    """The segment is not there, or holds nothing this reader understands."""


class SegmentReaders(OpenSegments[OpenSegment]):
    """Segments open for reading, each checked once against the reader's format."""

    def __init__(
        self, files: Files, directory: Path, layout: BlockLayout, clock: Callable[[], float], *, direct: bool
    ) -> None:
        super().__init__(files, directory, MAX_OPEN_TO_READ)
        self._layout = layout
        self._clock = clock
        self._flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
        self._refused: set[str] = set()

    @contextmanager
    def use(self, name: str) -> Iterator[int]:
        """The descriptor of segment `name`. Raises UnusableSegment, or OSError from the medium."""
        segment = self._take_open(name) or self._take_new(name)
        try:
            yield segment.fd
        finally:
            self._release(segment)

    def _take_open(self, name: str) -> OpenSegment | None:
        now_s = self._clock()
        with self._lock:
            segment = self._open.pop(name, None)
            finished = self._retire_idle(now_s)
            if segment is not None:
                self._open[name] = segment
                segment.users += 1
                segment.used_s = now_s
        for idle in finished:
            self._finish(idle)
        return segment

    def _take_new(self, name: str) -> OpenSegment:
        opened = OpenSegment(name, self._open_checked(name), users=1, used_s=self._clock())
        with self._lock:
            if name in self._open:  # another thread was faster: ours serves this call alone
                opened.retired = True
                return opened
            finished = self._keep(name, opened)
        for segment in finished:
            self._finish(segment)
        return opened

    def _retire_idle(self, now_s: float) -> list[OpenSegment]:
        """What is to be finished. The caller holds the lock."""
        finished: list[OpenSegment] = []
        while self._open:
            name, oldest = next(iter(self._open.items()))
            if now_s - oldest.used_s < IDLE_S:
                break
            finished += self._retire(name)
        return finished

    def _open_checked(self, name: str) -> int:
        if not is_segment_name(name):
            raise UnusableSegment(f"{name!r} is not a segment's name")
        try:
            fd = self._files.open(self._directory / name, self._flags)
        except FileNotFoundError as error:
            raise UnusableSegment(name) from error
        try:
            self._check_header(fd, name)
        except BaseException:
            self._files.close(fd)
            raise
        return fd

    def _check_header(self, fd: int, name: str) -> None:
        page = aligned_buffer(PAGE_BYTES)
        num_bytes = read_fully(self._files, fd, [page], 0)
        try:
            layout = SegmentHeader.decode(page[:num_bytes]).layout
        except UnreadableSegment as error:
            found = str(error)
        else:
            if layout == self._layout:
                return
            found = describe_layout(layout)
        if found not in self._refused:
            self._refused.add(found)
            logger.warning(
                "%s, and perhaps other segments, cannot be used: %s; expected format version %d, %s",
                name,
                found,
                FORMAT_VERSION,
                describe_layout(self._layout),
            )
        raise UnusableSegment(name)

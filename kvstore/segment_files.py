"""The SSD store's segment files: their names, and which ones a process has open.

    <weights id>.<writer id>.<sequence number>.kv

A writer appends only to segments it created itself (kvstore.segment_writers); nothing is ever overwritten.
A segment is dropped by unlinking it: whoever has it open can still read it (kvstore.segment_readers), and
its space is free only when nobody has.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from kvstore.files import Files

SEGMENT_SUFFIX = ".kv"
_NAME_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEGMENT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}\.\d{1,12}\.kv")


def is_segment_name(name: str) -> bool:
    """Could a writer have given a segment this name?"""
    return _SEGMENT_NAME.fullmatch(name) is not None


def is_name_part(text: str) -> bool:
    """May a weights id or a writer id be this?"""
    return _NAME_PART.fullmatch(text) is not None


@dataclass(slots=True)
class OpenSegment:
    """An open file; it is closed by whoever takes the last user away after it was retired."""

    name: str
    fd: int
    users: int = 0
    used_s: float = 0.0
    """When it was last taken for reading, by the reader's clock."""
    retired: bool = False


_Open = TypeVar("_Open", bound=OpenSegment)


class OpenSegments(Generic[_Open]):
    """The newest `limit` open segments by some name. Thread-safe."""

    def __init__(self, files: Files, directory: Path, limit: int) -> None:
        self._files = files
        self._directory = directory
        self._limit = limit
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()

    def _retire(self, key: str) -> list[_Open]:
        """Take `key`'s segment out; it is returned if it is to be finished. The caller holds the lock."""
        segment = self._open.pop(key, None)
        if segment is None:
            return []
        segment.retired = True
        return [] if segment.users else [segment]

    def _keep(self, key: str, segment: _Open) -> list[_Open]:
        """Put it in front and retire what is too many; returns what is to be finished. Holds the lock."""
        finished = self._retire(key) if self._open.get(key) is not segment else []
        self._open.pop(key, None)
        self._open[key] = segment
        while len(self._open) > self._limit:
            finished += self._retire(next(iter(self._open)))
        return finished

    def _release(self, segment: _Open) -> None:
        with self._lock:
            segment.users -= 1
            last = segment.retired and segment.users == 0
        if last:
            self._finish(segment)

    def _finish(self, segment: _Open) -> None:
        """The last thing done to a segment; nobody uses it any more."""
        self._files.close(segment.fd)

    def close(self) -> None:
        with self._lock:
            finished = [segment for key in list(self._open) for segment in self._retire(key)]
        for segment in finished:
            self._finish(segment)

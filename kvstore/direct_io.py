"""Whole reads and writes of page-aligned pieces, past the page cache where the file system allows.

It knows descriptors and memory; it knows no blocks. O_DIRECT wants every address, length and offset
to be a multiple of the device's sector; here everything is a multiple of a page.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from kvstore.files import Files
from kvstore.layout import PAGE_BYTES
from kvstore.store import Bytes

_PROBE_NAME = re.compile(r"\.probe-[0-9a-f]{16}")
_PROBES = 20
"""A new file is another's prey only until it is open, but many processes may start at once."""


def aligned_buffer(nbytes: int) -> Bytes:
    """Zeroed private memory that starts on a page."""
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(mapping, np.uint8)


def is_page_aligned(view: Bytes) -> bool:
    """Does a contiguous view start on a page?"""
    address: int = view.__array_interface__["data"][0]
    return address % PAGE_BYTES == 0


def probe_direct(files: Files, directory: Path) -> bool:
    """Does a page written to and read from `directory` with O_DIRECT come back?

    Raises OSError where no file can be written there at all. Its file has no name any more when bytes move,
    and what is left of the probes of processes that died is taken away.
    """
    for name in files.list(directory):
        if _PROBE_NAME.fullmatch(name):
            with suppress(OSError):
                files.unlink(directory / name)
    for left in reversed(range(_PROBES)):
        try:
            return _probe(files, directory)
        except FileNotFoundError:  # a process that opens the store just now took it for a dead one's
            if not left:
                raise
    raise AssertionError


def _probe(files: Files, directory: Path) -> bool:
    path = directory / f".probe-{secrets.token_hex(8)}"
    plain = files.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        try:
            direct = _open_direct(files, path)
        finally:
            with suppress(FileNotFoundError):
                files.unlink(path)
        try:
            write_fully(files, plain, [np.zeros(PAGE_BYTES, np.uint8)], 0)
            return direct is not None and _round_trip(files, direct)
        finally:
            if direct is not None:
                files.close(direct)
    finally:
        files.close(plain)


def _open_direct(files: Files, path: Path) -> int | None:
    """None where the file system does not open files that way. Raises FileNotFoundError."""
    try:
        return files.open(path, os.O_RDWR | os.O_DIRECT)
    except FileNotFoundError:
        raise
    except OSError:
        return None


def _round_trip(files: Files, fd: int) -> bool:
    written, read = aligned_buffer(PAGE_BYTES), aligned_buffer(PAGE_BYTES)
    written[:] = np.arange(PAGE_BYTES, dtype=np.uint64).astype(np.uint8)
    try:
        write_fully(files, fd, [written], 0)
        whole = read_fully(files, fd, [read], 0) == PAGE_BYTES
        return whole and bool(np.array_equal(written, read))
    except OSError:
        return False


def read_fully(files: Files, fd: int, parts: Sequence[Bytes], offset: int) -> int:
    """Fill `parts` in order from `offset`; return the bytes read, fewer only at the file's end.

    A file system may answer with less than it has. O_DIRECT can go on at a page only, so the rest is asked
    for from the last whole page; the file has ended where that brings nothing more.
    """
    views, start, end = _views(parts), 0, 0
    total = sum(map(len, views))
    while end < total:
        reached = start + files.preadv(fd, views, offset + start)
        if reached <= end:
            break
        end = reached
        whole = end if end == total else end // PAGE_BYTES * PAGE_BYTES
        views = _advance(views, whole - start)
        start = whole
    return end


def write_fully(files: Files, fd: int, parts: Sequence[Bytes], offset: int) -> None:
    """Write `parts` in order at `offset`. Raises OSError; what lies there is then undefined."""
    views, num_written = _views(parts), 0
    while views:
        num_bytes = files.pwritev(fd, views, offset + num_written)
        if num_bytes == 0:
            raise OSError(errno.ENOSPC, f"the file system took only {num_written} bytes")
        num_written += num_bytes
        views = _advance(views, num_bytes)


def _views(parts: Sequence[Bytes]) -> list[memoryview]:
    return [part.data for part in parts if len(part)]


def _advance(views: list[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of `views` after their first `num_bytes` bytes."""
    left = []
    for view in views:
        taken = min(num_bytes, len(view))
        num_bytes -= taken
        if taken < len(view):
            left.append(view[taken:])
    return left

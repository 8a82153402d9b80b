"""Whole reads and writes of page-aligned pieces, past the page cache where the file system allows.

It knows descriptors and memory; it knows no blocks. O_DIRECT wants every address, length and offset
to be a multiple of the device's sector; here everything is a multiple of a page.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvstore.layout import PAGE_BYTES
from kvstore.store import Bytes


def aligned_buffer(nbytes: int) -> Bytes:
    """Zeroed private memory that starts on a page."""
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(mapping, np.uint8)


def is_page_aligned(view: Bytes) -> bool:
    """Does a contiguous view start on a page?"""
    address: int = view.__array_interface__["data"][0]
    return address % PAGE_BYTES == 0


def probe_direct(directory: Path) -> bool:
    """Does a page written to and read from `directory` with O_DIRECT come back?

    Raises OSError where no file can be written there at all.
    """
    path = directory / f".probe-{secrets.token_hex(8)}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        path.write_bytes(bytes(PAGE_BYTES))
        return _direct_round_trip(path)
    finally:
        path.unlink(missing_ok=True)


def _direct_round_trip(path: Path) -> bool:
    written, read = aligned_buffer(PAGE_BYTES), aligned_buffer(PAGE_BYTES)
    written[:] = np.arange(PAGE_BYTES, dtype=np.uint64).astype(np.uint8)
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        write_fully(fd, [written], 0)
        return read_fully(fd, [read], 0) == PAGE_BYTES and bool(np.array_equal(written, read))
    except OSError:
        return False
    finally:
        os.close(fd)


def read_fully(fd: int, parts: Sequence[Bytes], offset: int) -> int:
    """Fill `parts` in order from `offset`; return the bytes read, fewer only at the file's end."""
    views, num_read = _views(parts), 0
    while views:
        num_bytes = os.preadv(fd, views, offset + num_read)
        num_read += num_bytes
        views = _advance(views, num_bytes)
        if num_bytes == 0 or num_read % PAGE_BYTES:
            break
    return num_read


def write_fully(fd: int, parts: Sequence[Bytes], offset: int) -> None:
    """Write `parts` in order at `offset`. Raises OSError; what lies there is then undefined."""
    views, num_written = _views(parts), 0
    while views:
        num_bytes = os.pwritev(fd, views, offset + num_written)
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

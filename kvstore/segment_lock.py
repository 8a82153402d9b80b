"""A lock that all threads of all processes that map a segment share, and that cannot be left held.

It is the kernel's lock on an open file (flock), which goes with its process however that ends. It guards a
few microseconds of arithmetic. A holder that stands still for longer was stopped from outside; after
`PATIENCE_S` the others go on without it, and it can at worst undo one booking when it wakes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import time

from kvstore.shared_segment import SharedSegment

PATIENCE_S = 0.05
_LOOK_S = 2e-5

# fcntl.flock lets go of the interpreter lock around the call: a thread would come back from it holding the
# lock and then wait, for milliseconds, until a busy neighbour lets it run.
_flock = ctypes.PyDLL(None, use_errno=True).flock


class SegmentLock:
    """`with lock:`. Not reentrant."""

    def __init__(self, segment: SharedSegment) -> None:
        self._fd = segment.open_descriptor()
        self._threads = threading.Lock()
        self._held = False

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            self._held = self._acquire(time.monotonic() + PATIENCE_S)
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *raised: object) -> None:
        if self._held:
            _flock(self._fd, fcntl.LOCK_UN)
        self._threads.release()

    def close(self) -> None:
        """Idempotent."""
        with self._threads:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _acquire(self, end_s: float) -> bool:
        while _flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB) != 0:
            code = ctypes.get_errno()
            if code not in (errno.EWOULDBLOCK, errno.EINTR):
                raise OSError(code, f"cannot lock shared memory: {os.strerror(code)}")
            if time.monotonic() >= end_s:
                return False
            time.sleep(_LOOK_S)
        return True

"""Whether a store still takes blocks, after what its medium has answered. No I/O.

    open --full disk--> full --each retry_s, one write may try--> open
      `--any other error--> closed for good

Whatever the medium does, the job goes on without caching, and its user reads one line about it.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

RETRY_S = 30.0

_FULL = (errno.ENOSPC, errno.EDQUOT)


class WriteGate:
    """Thread-safe."""

    def __init__(self, clock: Callable[[], float], retry_s: float = RETRY_S) -> None:
        """`clock` gives seconds and never goes back."""
        self.stopped: str | None = None
        """Why nothing is written; None while all is well."""
        self._clock = clock
        self._retry_s = retry_s
        self._retry_at_s: float | None = None
        self._trying = False
        self._warned = False
        self._lock = threading.Lock()

    def admits(self) -> bool:
        """May a write start? While the disk is full, one in `retry_s` may, to find out."""
        if self.stopped is None:
            return True
        with self._lock:
            if self._retry_at_s is None or self._clock() < self._retry_at_s:
                return False
            self._retry_at_s = self._clock() + self._retry_s
            self._trying = True
            return True

    def succeeded(self) -> None:
        """A write was taken. One that began before the disk was full says nothing about it."""
        if not self._trying:
            return
        with self._lock:
            if self._trying and self._retry_at_s is not None:
                self.stopped, self._retry_at_s, self._trying = None, None, False
                logger.info("KV caching goes on, there is room for blocks again")

    def failed(self, error: OSError) -> None:
        """A write was refused with `error`."""
        full = error.errno in _FULL
        with self._lock:
            self._trying = False
            if self.stopped is not None and (full or self._retry_at_s is None):
                return
            self.stopped = str(error)
            self._retry_at_s = self._clock() + self._retry_s if full else None
            # A disk that is full again and again is one piece of news.
            level = logging.INFO if full and self._warned else logging.WARNING
            logger.log(level, "KV caching stopped, the store takes no more blocks: %s", error)
            self._warned = True

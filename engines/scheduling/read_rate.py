"""What a storage NIC carries, from the reads that it has just done.

Pure policy, ours: a moving average over bytes, not over time, so that an idle NIC keeps its rate and a slow
one is found out after `memory_bytes`, however long they take. Until something was read it is the rate that
was set.
"""

from __future__ import annotations

import math


class ReadRate:
    """One per node. Times are those in which its read queue was not empty."""

    def __init__(self, bytes_per_s: float, memory_bytes: float) -> None:
        """Raises ValueError unless both are above 0."""
        if not 0 < bytes_per_s < math.inf:
            raise ValueError(f"a storage NIC's rate must be above 0 bytes/s, got {bytes_per_s}")
        if not 0 < memory_bytes < math.inf:
            raise ValueError(f"memory_bytes must be above 0, got {memory_bytes}")
        self._memory_bytes = memory_bytes
        self._s_per_byte = 1 / bytes_per_s

    @property
    def bytes_per_s(self) -> float:
        return 1 / self._s_per_byte

    def observe(self, nbytes: int, busy_s: float) -> None:
        """`nbytes` took `busy_s`. Nothing is learnt from 0 bytes or no time."""
        if nbytes <= 0 or busy_s <= 0:
            return
        weight = -math.expm1(-nbytes / self._memory_bytes)
        self._s_per_byte += weight * (busy_s / nbytes - self._s_per_byte)

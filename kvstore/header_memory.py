"""Aligned memory where the record headers of a call land: kept, because new memory costs a fault a page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvstore.direct_io import aligned_buffer
from kvstore.store import Bytes

_MAX_KEPT = 4096
"""Headers kept for later calls, in all."""


class HeaderMemory:
    """Thread-safe. What somebody may still write to is not given back, and freed with its last user."""

    def __init__(self, header_bytes: int) -> None:
        self._header_bytes = header_bytes
        self._free: deque[Bytes] = deque(maxlen=_MAX_KEPT)

    def take(self, count: int) -> list[Bytes]:
        """`count` headers, each of whole pages."""
        taken: list[Bytes] = []
        while len(taken) < count:
            try:
                taken.append(self._free.pop())
            except IndexError:
                taken += self._new(count - len(taken))
        return taken

    def give_back(self, headers: Sequence[Bytes]) -> None:
        """Nobody uses them any more."""
        self._free.extend(headers)

    def _new(self, count: int) -> list[Bytes]:
        memory, size = aligned_buffer(count * self._header_bytes), self._header_bytes
        return [memory[i * size : (i + 1) * size] for i in range(count)]

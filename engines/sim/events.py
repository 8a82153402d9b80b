"""Virtual time: what happens next, and when. Nothing here knows what happens."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

Handler = Callable[[Any], None]
"""Called with its event's argument; the time is `Events.now_s`."""


class Events:
    """Events in order of time, those of one time in the order they were added: so a run repeats itself."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_done = 0
        self._heap: list[tuple[float, int, Handler, Any]] = []
        self._num_added = 0

    def at(self, time_s: float, handler: Handler, argument: Any = None) -> None:
        """`handler(argument)` at `time_s`, which is not in the past. It cannot be taken back."""
        self._num_added += 1
        heapq.heappush(self._heap, (time_s, self._num_added, handler, argument))

    @property
    def has_more(self) -> bool:
        """Whether anything is still to happen."""
        return bool(self._heap)

    def drop_all(self) -> None:
        """Nothing more happens."""
        self._heap.clear()

    def run(self, until_s: float = math.inf) -> None:
        """Let everything happen, or what is due by `until_s`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until_s:
            self.now_s, _, handler, argument = pop(heap)
            self.num_done += 1
            handler(argument)

"""Waiting turns in the order they arrived: the paper's (DualPath, arXiv 2602.21548, section 6.1)."""

from __future__ import annotations

import heapq

from engines.scheduling.queued_turn import QueuedTurn
from engines.types import RequestId

_Place = tuple[float, int]
"""When a turn arrived, and how many had joined before it."""


class FifoOrder:
    """In the order they arrived; a turn that comes back with its old arrival time gets its old place."""

    def __init__(self) -> None:
        self._turns: dict[RequestId, tuple[_Place, QueuedTurn]] = {}
        self._heap: list[tuple[_Place, RequestId]] = []
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._turns)

    def push(self, turn: QueuedTurn) -> None:
        place = (turn.arrived_s, self._num_pushed)
        self._num_pushed += 1
        self._turns[turn.request_id] = (place, turn)
        heapq.heappush(self._heap, (place, turn.request_id))

    def remove(self, request_id: RequestId) -> None:
        self._turns.pop(request_id, None)

    def next(self, head: QueuedTurn | None, now_s: float) -> QueuedTurn | None:
        while self._heap:
            place, request_id = self._heap[0]
            there = self._turns.get(request_id)
            if there is not None and there[0] == place:
                return there[1]
            heapq.heappop(self._heap)
        return None

    def aged(self, now_s: float, aging_s: float) -> QueuedTurn | None:
        """The first come, if it has waited for `aging_s`."""
        first = self.next(None, now_s)
        return first if first is not None and now_s - first.arrived_s >= aging_s else None

"""Turns of similar estimated time after one another, so that the engines of a group finish together.

Pure policy, ours. The engines of a group wait for their slowest. A fetch that takes turns as they came gives
one engine a long prompt and the next a short one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from engines.scheduling.fifo_order import FifoOrder
from engines.scheduling.queued_turn import QueuedTurn
from engines.types import RequestId


class SimilarOrder:
    """Each fetch begins with the first come and goes on with those nearest to it in estimated time."""

    def __init__(self, aging_s: float) -> None:
        self._aging_s = aging_s
        self._fifo = FifoOrder()
        self._turns: dict[RequestId, QueuedTurn] = {}
        self._by_estimate: list[tuple[float, float, RequestId]] = []

    def __len__(self) -> int:
        return len(self._turns)

    def push(self, turn: QueuedTurn) -> None:
        self._fifo.push(turn)
        self._turns[turn.request_id] = turn
        insort(self._by_estimate, _by_estimate(turn))

    def remove(self, request_id: RequestId) -> None:
        turn = self._turns.pop(request_id, None)
        if turn is not None:
            self._fifo.remove(request_id)
            del self._by_estimate[bisect_left(self._by_estimate, _by_estimate(turn))]

    def next(self, head: QueuedTurn | None, now_s: float) -> QueuedTurn | None:
        aged = self._fifo.aged(now_s, self._aging_s)
        if head is None or aged is not None:
            return self._fifo.next(head, now_s)
        at = bisect_left(self._by_estimate, (head.estimate_s, -math.inf, RequestId("")))
        near = self._by_estimate[max(0, at - 1) : at + 1]
        nearest = min(near, key=lambda entry: abs(entry[0] - head.estimate_s), default=None)
        return None if nearest is None else self._turns[nearest[2]]


def _by_estimate(turn: QueuedTurn) -> tuple[float, float, RequestId]:
    return (turn.estimate_s, turn.arrived_s, turn.request_id)

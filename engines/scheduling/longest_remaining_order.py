"""The trajectory group with most estimated work left first, its turns one after the other.

Pure policy, ours. A rollout step ends with its last trajectory, so the longest should never wait; samples of
one task share a prompt and a baseline, so they stay together.
"""

from __future__ import annotations

import heapq
from bisect import insort

from engines.scheduling.fifo_order import FifoOrder
from engines.scheduling.queued_turn import QueuedTurn
from engines.types import RequestId


class LongestRemainingOrder:
    """Groups by the most work that one of their waiting turns has left; a turn of no group is its own."""

    def __init__(self, aging_s: float) -> None:
        self._aging_s = aging_s
        self._fifo = FifoOrder()
        self._turns: dict[RequestId, QueuedTurn] = {}
        self._groups: dict[str, LongestFirst] = {}
        self._current = ""
        """The group whose turn was the last to be next."""
        self._heap: list[tuple[float, float, str]] = []

    def __len__(self) -> int:
        return len(self._turns)

    def push(self, turn: QueuedTurn) -> None:
        self._fifo.push(turn)
        self._turns[turn.request_id] = turn
        group = self._groups.setdefault(_group_of(turn), LongestFirst())
        group.push(turn)
        self._offer(_group_of(turn), group)

    def remove(self, request_id: RequestId) -> None:
        turn = self._turns.pop(request_id, None)
        if turn is None:
            return
        self._fifo.remove(request_id)
        group = self._groups[_group_of(turn)]
        group.remove(request_id)
        if group.first is None:
            del self._groups[_group_of(turn)]
        else:
            self._offer(_group_of(turn), group)

    def next(self, head: QueuedTurn | None, now_s: float) -> QueuedTurn | None:
        aged = self._fifo.aged(now_s, self._aging_s)
        if aged is not None:
            return aged
        if head is not None and (begun := self._groups.get(self._current)) is not None:
            return begun.first
        while self._heap:
            _, _, name = self._heap[0]
            group = self._groups.get(name)
            if group is not None and self._heap[0] == _rank(name, group):
                self._current = name
                return group.first
            heapq.heappop(self._heap)
        return None

    def _offer(self, name: str, group: LongestFirst) -> None:
        heapq.heappush(self._heap, _rank(name, group))


class LongestFirst:
    """The waiting turns of one trajectory group, most work left first."""

    def __init__(self) -> None:
        self._turns: list[tuple[float, float, RequestId, QueuedTurn]] = []

    def push(self, turn: QueuedTurn) -> None:
        insort(
            self._turns, (-turn.remaining_tokens, turn.arrived_s, turn.request_id, turn), key=lambda e: e[:3]
        )

    def remove(self, request_id: RequestId) -> None:
        self._turns = [entry for entry in self._turns if entry[2] != request_id]

    @property
    def first(self) -> QueuedTurn | None:
        return self._turns[0][3] if self._turns else None


def _group_of(turn: QueuedTurn) -> str:
    return turn.trajectory_group or f"turn {turn.request_id}"


def _rank(name: str, group: LongestFirst) -> tuple[float, float, str]:
    assert group.first is not None
    return (-group.first.remaining_tokens, group.first.arrived_s, name)

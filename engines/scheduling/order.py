"""Which waiting turn is next for a prefill engine.

Pure policy. `fifo` is the paper's (DualPath, arXiv 2602.21548, section 6.1); the others are ours, for
rollouts, where only the last trajectory's end counts. Starvation is bounded in each of them: a turn that has
waited for `aging_s` goes before all that came later, so at most those that were there before it still stand
in front.

    fifo                the first come
    similar             the first come, and then those whose estimates are nearest to it, so that the engines
                        of a group, which wait for their slowest, finish together
    longest_remaining   the trajectory group with most estimated work left, its turns one after the other
"""

from __future__ import annotations

from typing import Protocol

from engines.scheduling.fifo_order import FifoOrder
from engines.scheduling.longest_remaining_order import LongestRemainingOrder
from engines.scheduling.queued_turn import QueuedTurn
from engines.scheduling.settings import SchedulingSettings
from engines.scheduling.similar_order import SimilarOrder
from engines.types import RequestId


class TurnOrder(Protocol):
    """The turns without a prefill engine."""

    def __len__(self) -> int: ...

    def push(self, turn: QueuedTurn) -> None: ...

    def remove(self, request_id: RequestId) -> None:
        """The turn waits no more; nothing happens if it did not."""
        ...

    def next(self, head: QueuedTurn | None, now_s: float) -> QueuedTurn | None:
        """The turn to place now, which stays in the queue; `head` is the fetch's first, None before that."""
        ...


def open_order(settings: SchedulingSettings) -> TurnOrder:
    """An empty queue in the order that is set."""
    if settings.order == "similar":
        return SimilarOrder(settings.order_aging_s)
    if settings.order == "longest_remaining":
        return LongestRemainingOrder(settings.order_aging_s)
    return FifoOrder()

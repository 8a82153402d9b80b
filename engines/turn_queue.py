"""The turns that wait for a place, in the order they came, and what each of them waits for.

It does not know who can be placed: it keeps the order, the callers' answers and where the waiting time went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engines.errors import PlacementTimeout, RequestRefused
from engines.types import PhaseSeconds, Placement, RequestId, TurnRequest
from kvstore.keys import BlockKey


@dataclass(slots=True)
class WaitingTurn:
    """A turn without a place. Each instant of its waiting is charged to one phase."""

    request: TurnRequest
    answer: asyncio.Future[Placement]
    since_s: float
    pending_key: BlockKey | None = None
    """A block of its prompt that somebody is making right now, and that it waits for."""
    pending_since_s: float | None = None
    pending_until_s: float | None = None
    buffer_since_s: float | None = None

    def wait_for_block(self, key: BlockKey, now_s: float) -> bool:
        """It waits for `key` now; whether that is the first block it ever waits for."""
        self.pending_key = key
        if self.pending_since_s is not None:
            return False
        self.pending_since_s = now_s
        self.buffer_since_s = None
        return True

    def wait_for_no_block(self, now_s: float) -> None:
        """It waits for no block any more, nor ever again."""
        if self.pending_until_s is None:
            self.pending_until_s = now_s

    def wait_for_slots(self, now_s: float) -> None:
        """All it lacks is slots."""
        if self.buffer_since_s is None:
            self.buffer_since_s = now_s

    def waited(self, now_s: float) -> PhaseSeconds:
        """Where the time since submission went, if it is placed now."""
        persist_wait_s = buffer_wait_s = 0.0
        if self.pending_since_s is not None and self.pending_until_s is not None:
            persist_wait_s = self.pending_until_s - self.pending_since_s
        if self.buffer_since_s is not None:
            buffer_wait_s = now_s - self.buffer_since_s
        return PhaseSeconds(
            queue=now_s - self.since_s - persist_wait_s - buffer_wait_s,
            buffer_wait=buffer_wait_s,
            persist_wait=persist_wait_s,
        )


class TurnQueue:
    """First come, first in order. A turn whose answer is done, or whose caller has gone, leaves it."""

    def __init__(self) -> None:
        self._waiting: dict[RequestId, WaitingTurn] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingTurn]:
        """In the order they came."""
        return iter(self._waiting.values())

    def join(self, request: TurnRequest, now_s: float) -> WaitingTurn:
        """The last in the queue; await its answer."""
        waiting = WaitingTurn(request, asyncio.get_running_loop().create_future(), now_s)
        self._waiting[request.request_id] = waiting
        return waiting

    def leave(self, request_id: RequestId) -> None:
        """The turn waits no more; nothing happens if it did not."""
        self._waiting.pop(request_id, None)

    def take_back(self, request_id: RequestId) -> None:
        """A turn that still waits is not wanted any more."""
        waiting = self._waiting.get(request_id)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_exception(PlacementTimeout(f"{request_id} was taken back"))

    def refuse_all(self, reason: Callable[[TurnRequest], RequestRefused]) -> None:
        """Nobody who waits will get a place."""
        for waiting in self:
            if not waiting.answer.done():
                waiting.answer.set_exception(reason(waiting.request))
        self._waiting.clear()

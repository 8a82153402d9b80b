"""The turns that wait for a place: their callers' answers, what each waits for, and where the time went.

It does not know who can be placed, and in what order (engines.scheduling does): a turn here waits for blocks
that others make (engines.block_waits), or for its engines and slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from engines.errors import PlacementTimeout, RequestRefused
from engines.scheduling.engine_choice import EnginePair
from engines.types import PhaseSeconds, Placement, RequestId, TurnRequest
from kvstore.indexed_blocks import NO_BLOCKS, IndexedBlocks
from kvstore.keys import BlockKey


@dataclass(slots=True)
class WaitingTurn:
    """A turn without a place. Each instant of its waiting is charged to one phase."""

    request: TurnRequest
    hit_keys: tuple[BlockKey, ...]
    """Keys of the prompt's blocks that may be hits."""
    answer: asyncio.Future[Placement]
    since_s: float
    hit: IndexedBlocks = field(default_factory=lambda: NO_BLOCKS)
    """Its stored prefix when it was looked up last."""
    num_losses: int = -1
    """Of the index, at that time."""
    pair: EnginePair | None = None
    """Its engines, once it has both."""
    pending_key: BlockKey | None = None
    """A block of its prompt that somebody is making right now, and that it waits for."""
    pending_since_s: float | None = None
    pending_until_s: float | None = None
    buffer_since_s: float | None = None
    alarm: asyncio.TimerHandle | None = None
    """Ends its waiting for blocks."""

    @property
    def request_id(self) -> RequestId:
        return self.request.request_id

    @property
    def may_wait_for_blocks(self) -> bool:
        """Whether it has not waited for blocks for as long as it may."""
        return self.pending_until_s is None

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
        self.silence()

    def silence(self) -> None:
        """Nothing ends its waiting for blocks any more."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None

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
    """Everybody who waits. A turn whose answer is done, or whose caller has gone, leaves."""

    def __init__(self) -> None:
        self._waiting: dict[RequestId, WaitingTurn] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def get(self, request_id: RequestId) -> WaitingTurn | None:
        return self._waiting.get(request_id)

    def join(self, request: TurnRequest, hit_keys: tuple[BlockKey, ...], now_s: float) -> WaitingTurn:
        """One more; await its answer."""
        waiting = WaitingTurn(request, hit_keys, asyncio.get_running_loop().create_future(), now_s)
        self._waiting[request.request_id] = waiting
        return waiting

    def leave(self, request_id: RequestId) -> None:
        """The turn waits no more. Idempotent."""
        self._waiting.pop(request_id, None)

    def take_back(self, request_id: RequestId) -> None:
        """A turn that still waits is not wanted any more."""
        waiting = self._waiting.get(request_id)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_exception(PlacementTimeout(f"{request_id} was taken back"))

    def of_client(self, name: str, but: str) -> list[WaitingTurn]:
        """Those of all of the client's processes `but` one."""
        mine = (turn for turn in self._waiting.values() if turn.request.client.startswith(f"{name}/"))
        return [turn for turn in mine if turn.request.client != but]

    def refuse_all(self, reason: Callable[[TurnRequest], RequestRefused]) -> None:
        """Nobody who waits will get a place."""
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(reason(waiting.request))

"""Turns that wait for blocks of their prompts which others are making right now.

So the samples of a group, whose prompts are the same, compute that prompt once. A turn waits for one block at
a time, and for all of them together no longer than a deadline: then the first that is still pending ends its
hit. It holds up nobody meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from engines.turn_queue import WaitingTurn
from engines.types import RequestId
from kvstore.keys import BlockKey
from kvstore.prefix_index import PrefixIndex


class BlockWaits:
    """One per scheduler, on its event loop."""

    def __init__(
        self,
        index: PrefixIndex,
        *,
        deadline_s: float,
        clock: Callable[[], float],
        on_ready: Callable[[WaitingTurn], None],
        on_change: Callable[[], None],
    ) -> None:
        """`on_ready` gets each turn whose wait is over, `on_change` hears when a deadline ended one."""
        self._index = index
        self._deadline_s = deadline_s
        self._clock = clock
        self._on_ready = on_ready
        self._on_change = on_change
        self._turns: dict[BlockKey, dict[RequestId, WaitingTurn]] = {}

    def begins(self, turn: WaitingTurn) -> bool:
        """Look the turn up, and whether it waits from now on: a block of its prompt is being made."""
        index, keys = self._index, turn.hit_keys
        num_hit = len(turn.hit)
        if turn.num_losses == index.num_losses and (
            num_hit == len(keys) or not index.is_known(keys[num_hit])
        ):
            return False
        match = index.match(keys)
        turn.hit, turn.num_losses = match.hit, index.num_losses
        if not match.pending or not turn.may_wait_for_blocks:
            if turn.pending_since_s is not None:
                turn.wait_for_no_block(self._clock())
            return False
        self._leave(turn)
        self._turns.setdefault(match.pending[0], {})[turn.request_id] = turn
        if turn.wait_for_block(match.pending[0], self._clock()):
            turn.alarm = asyncio.get_running_loop().call_later(self._deadline_s, self._wait_no_longer, turn)
        return True

    def wake(self, keys: Iterable[BlockKey]) -> None:
        """These blocks may be made by nobody any more, or be stored: whoever waits for them looks again."""
        if not self._turns:
            return
        for turn in [turn for key in keys for turn in self._turns.get(key, {}).values()]:
            key = turn.pending_key
            if key is None or self._index.is_pending(key):
                continue
            self._leave(turn)
            if not self.begins(turn):
                turn.wait_for_no_block(self._clock())
                self._on_ready(turn)

    def end(self, turn: WaitingTurn) -> None:
        """The turn is gone. Nothing happens if it does not wait for a block."""
        self._leave(turn)
        turn.silence()

    def _wait_no_longer(self, turn: WaitingTurn) -> None:
        """The first block that is still pending ends the hit."""
        turn.alarm = None
        turn.wait_for_no_block(self._clock())
        if self._leave(turn):
            self._on_ready(turn)
            self._on_change()

    def _leave(self, turn: WaitingTurn) -> bool:
        """The turn waits for this block no more; whether it waited for one."""
        key, turn.pending_key = turn.pending_key, None
        if key is None:
            return False
        others = self._turns[key]
        del others[turn.request_id]
        if not others:
            del self._turns[key]
        return True

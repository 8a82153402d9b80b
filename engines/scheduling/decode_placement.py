"""Which decode engine generates a turn.

Pure policy, DualPath (arXiv 2602.21548, section 6.1), in two phases. Across groups: when any group fetches,
the whole queue is dealt out, each turn to the group with the fewest tokens, those waiting for the group
included. Within the group: from the front of its own queue, as long as the head fits some engine's free HBM.
Of the engines it fits, those that stay within Z = factor x the average load come first, and of them the one
with the fewest requests; if none does, the one with the fewest tokens. Ours: ties go to fewer tokens or
requests, then to the smaller engine id; engines that failed the turn come last of those it fits.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection

from engines.scheduling.engine_choice import EngineChoice
from engines.scheduling.engine_group import Counts, EngineGroup
from engines.scheduling.queued_turn import QueuedTurn
from engines.scheduling.settings import SchedulingSettings
from engines.types import RequestId


class DecodePlacement:
    """The queue of all decode groups, and each group's own."""

    def __init__(self, settings: SchedulingSettings) -> None:
        self._settings = settings
        self._queue: dict[RequestId, QueuedTurn] = {}
        self._private: dict[str, deque[QueuedTurn]] = {}
        self._private_tokens: dict[str, int] = {}
        self._last_rows: dict[str, int] = {}

    def __len__(self) -> int:
        """Turns without a decode engine."""
        return len(self._queue) + sum(map(len, self._private.values()))

    def push(self, turn: QueuedTurn) -> None:
        self._queue[turn.request_id] = turn

    def withdraw(self, request_id: RequestId) -> None:
        """The turn waits no more; nothing happens if it did not."""
        if self._queue.pop(request_id, None) is not None:
            return
        for group_id, waiting in self._private.items():
            for turn in waiting:
                if turn.request_id == request_id:
                    waiting.remove(turn)
                    self._private_tokens[group_id] -= turn.prompt_tokens
                    return

    def give_up_group(self, group_id: str) -> None:
        """The group is gone: who waited for it waits for any again, before those that came later."""
        waiting = {turn.request_id: turn for turn in self._private.pop(group_id, ())}
        self._private_tokens.pop(group_id, None)
        self._queue = waiting | self._queue

    def need_of(self, turn: QueuedTurn) -> int:
        """Tokens of decode HBM that the turn is placed with."""
        return turn.prompt_tokens if self._settings.hbm_need == "prompt" else turn.context_tokens

    def deal(self, groups: Collection[EngineGroup]) -> None:
        """Phase 1: every waiting turn joins the queue of the group with the fewest tokens."""
        heap = [
            (group.total_tokens + self._private_tokens.get(group.group_id, 0), index, group.group_id)
            for index, group in enumerate(groups)
            if len(group)
        ]
        if not heap or not self._queue:
            return
        heapq.heapify(heap)
        for turn in self._queue.values():
            tokens, index, group_id = heap[0]
            self._private.setdefault(group_id, deque()).append(turn)
            self._private_tokens[group_id] = self._private_tokens.get(group_id, 0) + turn.prompt_tokens
            heapq.heapreplace(heap, (tokens + turn.prompt_tokens, index, group_id))
        self._queue.clear()

    def fetch(self, group: EngineGroup) -> list[EngineChoice]:
        """Phase 2: turns for the group's engines, removed from its queue and counted as their load."""
        waiting = self._private.get(group.group_id)
        if not waiting or not len(group):
            return []
        limit_tokens = self._light_load_limit(group, waiting)
        choices: list[EngineChoice] = []
        while waiting and len(choices) < self._settings.fetch_max_requests:
            turn = waiting[0]
            row = self._choose(group, turn, limit_tokens)
            if row is None:
                break
            waiting.popleft()
            self._private_tokens[group.group_id] -= turn.prompt_tokens
            group.give(row, turn.prompt_tokens, self.need_of(turn))
            choices.append(EngineChoice(turn, group.group_id, group.engine_ids[row], group.node_ids[row]))
        return choices

    def _light_load_limit(self, group: EngineGroup, waiting: deque[QueuedTurn]) -> float:
        """Z, of the engines' tokens and those of the turns that fit all free HBM together.

        Only turns that this fetch may take are looked at: Z is the balance that it aims at.
        """
        free_tokens = int(group.free_kv_tokens.clip(min=0).sum())
        fitting_tokens = 0
        for turn, _ in zip(waiting, range(self._settings.fetch_max_requests), strict=False):
            free_tokens -= self.need_of(turn)
            if free_tokens < 0:
                break
            fitting_tokens += turn.prompt_tokens
        average = (fitting_tokens + group.total_tokens) / len(group)
        return self._settings.decode_balance_factor * average

    def _choose(self, group: EngineGroup, turn: QueuedTurn, limit_tokens: float) -> int | None:
        """The row of the engine that takes the turn."""
        fits = group.free_kv_tokens >= self.need_of(turn)
        if self._settings.placement == "round_robin" and fits.any():
            return self._next_in_turn(group.group_id, fits.nonzero()[0])
        if turn.failed_engines:
            fits = group.but_failed(fits, turn.failed_engines)
        light = fits & (group.tokens + turn.prompt_tokens <= limit_tokens)
        row = group.fewest_requests(light)
        return group.fewest_tokens(fits) if row is None else row

    def _next_in_turn(self, group_id: str, rows: Counts) -> int:
        """The first of `rows` after the one taken last."""
        after = rows[rows > self._last_rows.get(group_id, -1)]
        row = int(after[0] if len(after) else rows[0])
        self._last_rows[group_id] = row
        return row

"""Which prefill engine computes a waiting turn's prompt.

Pure policy, DualPath (arXiv 2602.21548, section 6.1). When a group fetches, an engine is

    overloaded    its tokens exceed the load limit (beta): it gets nothing
    preferred     its tokens do not, and its node's read queue is within the read limit (alpha)
    spare         its tokens do not, but its node's read queue is beyond alpha

and each turn, in the queue's order, goes to the preferred engine with the fewest tokens, to a spare one only
if none is preferred: a node with a short read queue would leave its storage NIC idle. The fetch ends when no
engine is open. Ours: tokens and read queues count every decision at once, ties go to fewer requests and then
to the smaller engine id, and engines that failed the turn before come last among the open ones. Where
contexts are read ahead, the node that keeps a turn's pulls it (engines.scheduling.prefetch).
"""

from __future__ import annotations

import numpy as np

from engines.scheduling.engine_choice import EngineChoice
from engines.scheduling.engine_group import EngineGroup, Mask
from engines.scheduling.order import TurnOrder
from engines.scheduling.prefetch import pulls
from engines.scheduling.queued_turn import QueuedTurn
from engines.scheduling.read_queues import ReadQueues
from engines.scheduling.settings import SchedulingSettings


class PrefillPlacement:
    """The queue of all prefill groups."""

    def __init__(
        self,
        settings: SchedulingSettings,
        waiting: TurnOrder,
        queues: ReadQueues,
        *,
        load_limit_tokens: int,
        read_queue_limit_tokens: int,
    ) -> None:
        """`load_limit_tokens` is beta, `read_queue_limit_tokens` alpha."""
        self._settings = settings
        self._queues = queues
        self._load_limit_tokens = load_limit_tokens
        self._read_queue_limit_tokens = read_queue_limit_tokens
        self.waiting = waiting
        self._last_rows: dict[str, int] = {}

    def load_of(self, turn: QueuedTurn) -> int:
        """Tokens the turn adds to its prefill engine's load."""
        return turn.prompt_tokens if self._settings.prefill_load_counts == "prompt" else turn.miss_tokens

    def fetch(self, group: EngineGroup, now_s: float) -> list[EngineChoice]:
        """Turns for the group's engines, removed from the queue and counted as their load."""
        choices: list[EngineChoice] = []
        head: QueuedTurn | None = None
        while len(choices) < self._settings.fetch_max_requests:
            turn = self.waiting.next(head, now_s)
            row = None if turn is None else self._choose(group, turn)
            if turn is None or row is None:
                break
            head = head or turn
            self.waiting.remove(turn.request_id)
            group.give(row, self.load_of(turn))
            self._queues.promise(turn.request_id, group.node_ids[row], turn.hit_tokens)
            choices.append(EngineChoice(turn, group.group_id, group.engine_ids[row], group.node_ids[row]))
        return choices

    def _choose(self, group: EngineGroup, turn: QueuedTurn) -> int | None:
        """The row of the engine that takes the turn."""
        if not len(group):
            return None
        if self._settings.placement == "round_robin":
            row = (self._last_rows.get(group.group_id, -1) + 1) % len(group)
            self._last_rows[group.group_id] = row
            return row
        allowed = group.tokens <= self._load_limit_tokens
        if turn.failed_engines:
            allowed = group.but_failed(allowed, turn.failed_engines)
        short = self._queues.at(group.node_rows) <= self._read_queue_limit_tokens
        preferred = group.fewest_tokens(allowed & short)
        least = group.fewest_tokens(allowed) if preferred is None else preferred
        if least is None or turn.memory_node is None:
            return least
        return self._pulled(group, turn, allowed, least)

    def _pulled(self, group: EngineGroup, turn: QueuedTurn, allowed: Mask, row: int) -> int:
        """The row of an engine whose node keeps much of the hit, if its load allows; else `row`."""
        there = np.array([node_id == turn.memory_node for node_id in group.node_ids])
        pulled = group.fewest_tokens(allowed & there)
        if pulled is not None and pulls(
            pull=self._settings.prefetch_pull,
            kept_tokens=turn.memory_tokens,
            load_tokens=int(group.tokens[pulled]),
            least_tokens=int(group.tokens[row]),
        ):
            return pulled
        return row

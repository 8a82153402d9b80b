"""A turn as the placement policy sees it: sizes and estimates, no keys and no token ids."""

from __future__ import annotations

from dataclasses import dataclass

from engines.types import EngineId, NodeId, RequestId


@dataclass(frozen=True, slots=True)
class QueuedTurn:
    """A turn that waits for engines. Estimates are 0 where an order does not use them."""

    request_id: RequestId
    arrived_s: float
    """On the caller's clock."""
    prompt_tokens: int
    hit_tokens: int
    """Of the prompt, stored when the turn was submitted."""
    output_tokens: int
    """Most it may generate; what it will generate, where that is known."""
    estimate_s: float = 0.0
    """Predicted time of its own prefill."""
    remaining_tokens: int = 0
    """Its trajectory will still append and generate, this turn's included."""
    memory_node: NodeId | None = None
    """The prefill node that keeps most of the hit in its memory, where that counts."""
    memory_tokens: int = 0
    """Tokens kept there."""
    trajectory_group: str = ""
    """Turns of one trajectory group stay together where the order says so."""
    failed_engines: frozenset[EngineId] = frozenset()
    """Engines that failed it before; they are taken only if their group has no other."""

    @property
    def miss_tokens(self) -> int:
        return self.prompt_tokens - self.hit_tokens

    @property
    def context_tokens(self) -> int:
        """Tokens it may hold at its end."""
        return self.prompt_tokens + self.output_tokens

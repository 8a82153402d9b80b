"""What can be configured about a tiny model's warm start: meaning and bounds, no values, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from engines.bounds import require_above, require_at_least


@dataclass(frozen=True, slots=True)
class WarmStartConfig:
    """Supervised steps that teach a tiny model the format of its task before GRPO begins."""

    steps: int
    """Steps on demonstrations that use the tool."""
    give_up_steps: int
    """Steps after those in which most demonstrations answer without the tool, so that GRPO has something
    to learn."""
    give_up_share: float
    """Share of the demonstrations in those steps that give up, 0..1."""
    batch_size: int
    """Demonstrations in one step."""
    learning_rate: float
    """Of AdamW."""
    min_operators: int
    """Fewest operators of a generated task; each needs one tool call."""
    max_operators: int
    """Most operators of a generated task."""
    threads: int
    """Torch threads of the warm start."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "batch_size", "min_operators", "threads")
        require_at_least(self, 0, "give_up_steps")
        require_above(self, 0, "learning_rate")
        if not 0 <= self.give_up_share <= 1:
            raise ValueError(f"give_up_share must be in [0, 1], got {self.give_up_share}")
        if self.max_operators < self.min_operators:
            raise ValueError(
                f"max_operators must be >= min_operators={self.min_operators}, got {self.max_operators}"
            )

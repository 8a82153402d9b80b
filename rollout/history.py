"""What a trajectory has so far: enough to go on from the end of its last finished turn."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.types import Segment, Turn


@dataclass(frozen=True, slots=True)
class History:
    """A trajectory that was cut off."""

    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    """All finished: the tool's answers are in the segments."""
    started_s: float
    """Seconds since the step started."""
    elapsed_s: float
    """How long it had run when its last turn ended."""
    attempt: int = 0
    """As in Sample."""

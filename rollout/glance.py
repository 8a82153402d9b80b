"""What agents are doing right now, for people who wait for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class AgentNow:
    """One trajectory under way."""

    trajectory_id: str
    running_s: float
    """How long it has been running, in this run."""
    phase: str
    """What it does or waits for, one of PHASES."""
    phase_s: float
    """For how long."""
    num_turns: int
    """Finished ones."""

    def __str__(self) -> str:
        return (
            f"{self.trajectory_id}: {self.running_s:.0f} s, {self.num_turns} turns, "
            f"in {self.phase} for {self.phase_s:.0f} s"
        )


@dataclass(frozen=True, slots=True)
class Glance:
    """A worker's agents, or all workers'."""

    num_moves: int = 0
    """Phases begun since the start. When it stands still, nothing moves."""
    num_turns: int = 0
    """Turns finished since the start."""
    expected_hit_tokens: int = 0
    """Whole blocks of the agents' own contexts, at turns after their first, since the start."""
    lost_hit_tokens: int = 0
    """Those of them that were no hit."""
    oldest: tuple[AgentNow, ...] = ()
    """Those that have been running longest, longest first."""
    silent: tuple[str, ...] = ()
    """Workers that gave no answer."""
    ailing: tuple[str, ...] = ()
    """Parts of the cluster that are not healthy, and how they are."""

    @classmethod
    def of(cls, parts: Iterable[Glance], num_oldest: int) -> Glance:
        """All of `parts` together."""
        parts = list(parts)
        agents = sorted(
            (agent for part in parts for agent in part.oldest), key=attrgetter("running_s"), reverse=True
        )
        return cls(
            num_moves=sum(part.num_moves for part in parts),
            num_turns=sum(part.num_turns for part in parts),
            expected_hit_tokens=sum(part.expected_hit_tokens for part in parts),
            lost_hit_tokens=sum(part.lost_hit_tokens for part in parts),
            oldest=tuple(agents[:num_oldest]),
            silent=tuple(name for part in parts for name in part.silent),
        )

"""A trace of agents that are all alike, written as closed-loop CSV.

Each agent has a long context before its first timed round, which `trace_window` has stored before; then
every round appends and generates the same. With equal agents there is no tail: all end at about the same
time, and what is measured is the steady state.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from rollout.traces.closed_loop import COLUMNS

_GOLDEN = 0.618033988749895
"""Multiples of the golden ratio's fraction fill an interval evenly, however many there are."""


@dataclass(frozen=True, slots=True)
class EqualAgents:
    """What each of the agents does."""

    agents: int
    rounds: int
    context_tokens: int
    """Before the first round that is timed."""
    append_tokens: int
    output_tokens: int
    tool_wait_s: float = 0.0
    spread_tokens: int = 0
    """Contexts lie evenly in context_tokens +- half of this, in no order; 0: all are equal."""

    def write(self, path: Path) -> None:
        """Rounds 1 to `rounds` of each session are the window; one before and one after are not replayed."""
        rows = [row for agent in range(self.agents) for row in self._rows(agent)]
        with path.open("w", newline="", encoding="ascii") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)

    @property
    def name(self) -> str:
        """Of its file."""
        return "x".join(str(value) for value in astuple(self))

    def _rows(self, agent: int) -> Iterator[tuple[str, int, int, int, int, int]]:
        context = self.context_tokens + round(self.spread_tokens * (_GOLDEN * agent % 1 - 0.5))
        yield (f"agent-{agent}", 0, 0, context - 1, 1, 0)
        for index in range(1, self.rounds + 2):
            wait_ms = round(1000 * self.tool_wait_s)
            yield (f"agent-{agent}", index, context, self.append_tokens, self.output_tokens, wait_ms)
            context += self.append_tokens + self.output_tokens

    def overrides(self, path: Path) -> tuple[str, ...]:
        """Of a replay of the file at `path`."""
        return (f"trace={path}", f"trace_window={self.rounds}", f"num_agents={self.agents}")

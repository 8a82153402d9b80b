"""A trace of agents that are all equal, written as closed-loop CSV.

Each agent has a long context before its first timed round, which `trace_window` puts into the store; then
every round appends and generates the same. With equal agents there is no tail: all end at about the same
time, and what is measured is the steady state.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from rollout.traces.closed_loop import COLUMNS


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

    def write(self, path: Path) -> None:
        """Rounds 1 to `rounds` of each session are the window; one before and one after are not replayed."""
        with path.open("w", newline="", encoding="ascii") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for agent in range(self.agents):
                rows.writerows(self._rows(f"agent-{agent}"))

    def _rows(self, session_id: str) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = [(session_id, 0, 0, self.context_tokens - 1, 1, 0)]
        context = self.context_tokens
        for index in range(1, self.rounds + 2):
            wait_ms = round(1000 * self.tool_wait_s)
            rows.append((session_id, index, context, self.append_tokens, self.output_tokens, wait_ms))
            context += self.append_tokens + self.output_tokens
        return rows

    def overrides(self, path: Path) -> tuple[str, ...]:
        """Of a replay of the file at `path`."""
        return (f"trace={path}", f"trace_window={self.rounds}", f"num_agents={self.agents}")

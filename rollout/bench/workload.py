"""A trace of agents that are all equal, written as closed-loop CSV.

Each agent has a long context before its first timed round, whose KV is stored before; then every round
appends and generates the same. With equal agents there is no tail: all end at about the same time, and what
is measured is the steady state.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from rollout.traces.closed_loop import COLUMNS

_Row = tuple[str, int, int, int, int, int]
"""Of COLUMNS."""


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
        _write(path, [row for session_id in self._session_ids() for row in self._rows(session_id)])

    def write_contexts(self, path: Path) -> None:
        """What makes the same contexts, in one round of each session: to fill a store with."""
        _write(path, [self._first(session_id) for session_id in self._session_ids()])

    @property
    def name(self) -> str:
        """Of its files."""
        return "x".join(str(value) for value in astuple(self))

    def _session_ids(self) -> list[str]:
        return [f"agent-{agent}" for agent in range(self.agents)]

    def _first(self, session_id: str) -> _Row:
        return (session_id, 0, 0, self.context_tokens - 1, 1, 0)

    def _rows(self, session_id: str) -> list[_Row]:
        rows = [self._first(session_id)]
        context = self.context_tokens
        for index in range(1, self.rounds + 2):
            wait_ms = round(1000 * self.tool_wait_s)
            rows.append((session_id, index, context, self.append_tokens, self.output_tokens, wait_ms))
            context += self.append_tokens + self.output_tokens
        return rows

    def overrides(self, path: Path) -> tuple[str, ...]:
        """Of a replay of the file at `path`."""
        return (f"trace={path}", f"trace_window={self.rounds}", f"num_agents={self.agents}")


def _write(path: Path, rows: Sequence[_Row]) -> None:
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)

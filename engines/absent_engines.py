"""Which engines get no turns as they do not answer, and news of it for the clients.

The watch (engines.cluster_watch) says who does not answer: engines and nodes, by their ids, always all of
them. Each change has a number, so that a client which asks again and again misses none.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from engines.loans import Loans
from engines.roster import Roster
from engines.types import EngineId, EngineInfo


class AbsentEngines:
    """One per scheduler."""

    def __init__(self, roster: Roster, loans: Loans) -> None:
        self._roster = roster
        self._loans = loans
        self._parts: frozenset[str] = frozenset()
        self._num_changes = 0
        self._news = asyncio.Event()
        self.engines: frozenset[EngineId] = frozenset()
        """Those that get no turns."""

    def set(self, parts: frozenset[str]) -> tuple[frozenset[EngineId], frozenset[EngineId]]:
        """These engines and nodes do not answer; which engines get no turns now that did, and the reverse.

        An engine that is back stays out while over half of its node is set aside.
        """
        before = self.engines
        self._parts = parts
        out = self._roster.among(parts)
        self.engines = out | {e for e in before - out if self._is_cramped(e)}
        self._num_changes += 1
        self._news.set()
        self._news = asyncio.Event()
        return self.engines - before, before - self.engines

    def includes(self, info: EngineInfo) -> bool:
        """Whether an engine that is enlisted now gets no turns before `set` says that it is back."""
        is_out = info.engine_id in self._parts or info.node_id in self._parts
        self.engines = self.engines | {info.engine_id} if is_out else self.engines - {info.engine_id}
        return is_out

    def leave(self, engine_ids: frozenset[EngineId]) -> None:
        """These get no turns before they are enlisted again."""
        self.engines |= engine_ids

    async def news(self, seen: int, wait_s: float) -> tuple[int, frozenset[str]]:
        """All that do not answer, and the number of this news; waits for others than number `seen`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._num_changes == seen:
                    await self._news.wait()
        return self._num_changes, self._parts

    def told(self) -> str:
        """For the end of a message; nothing where all answer."""
        return f"; no answer from {', '.join(sorted(self._parts))}" if self._parts else ""

    def _is_cramped(self, engine_id: EngineId) -> bool:
        return self._loans.node(self._roster.engine(engine_id).node_id).is_mostly_quarantined

"""Asks every node agent and engine, again and again, whether it is there, and says who is not.

A part is absent when it has left two questions in a row unanswered, each for half of the deadline, or at once
when its process is dead; it is back when it answers. Two, so that a watch that was held up itself accuses
nobody. What becomes of an absent part's work is not decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from engines.errors import EngineFailed

logger = logging.getLogger(__name__)
_QUESTIONS = 2


class Watched(Protocol):
    """A part that can be asked for a sign of life. Raises EngineFailed if it is of no use any more."""

    async def alive(self) -> int: ...


class ClusterWatch:
    """One per job, on the scheduler's event loop."""

    def __init__(
        self,
        parts: Mapping[str, Watched],
        on_change: Callable[[frozenset[str]], Awaitable[None]],
        *,
        period_s: float,
        deadline_s: float,
    ) -> None:
        """`on_change` hears of all absent parts, by their ids, whenever these are others than before."""
        self._parts = dict(parts)
        self._on_change = on_change
        self._period_s = period_s
        self._deadline_s = deadline_s
        self._absent: frozenset[str] = frozenset()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._watch(name)) for name in self._parts]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _watch(self, name: str) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            why = await self._why_absent(name)
            if (why is None) != (name in self._absent):
                continue
            self._absent = self._absent - {name} if why is None else self._absent | {name}
            logger.warning("%s %s", name, "is back" if why is None else f"is of no use now: {why}")
            await self._on_change(self._absent)

    async def _why_absent(self, name: str) -> str | None:
        """None: it is there."""
        for _ in range(_QUESTIONS):
            try:
                async with asyncio.timeout(self._deadline_s / _QUESTIONS):
                    await self._parts[name].alive()
                return None
            except TimeoutError:
                continue
            except EngineFailed as error:
                return str(error)
        return f"no answer within {self._deadline_s} s"

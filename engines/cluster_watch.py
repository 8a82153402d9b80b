"""Asks every part of the cluster, again and again, whether it is there, and has brought back what is not.

A part is dead when it has left two questions in a row unanswered, each for half of the deadline, or at once
when its process is gone; it is back when it answers. Two, so that a watch that was held up itself accuses
nobody. What becomes of a dead part's work, and how a part is started anew, is not decided here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from engines.errors import EngineBroken, EngineFailed
from engines.health import Health, PartHealth

logger = logging.getLogger(__name__)
_QUESTIONS = 2


class Watched(Protocol):
    """A part that can be asked for a sign of life. Raises EngineFailed if it is of no use any more."""

    async def alive(self) -> int: ...


BringBack = Callable[[PartHealth], Awaitable[None]]
"""Starts a part anew and gives it what the others have; it tells the PartHealth when the process is up."""


@dataclass(frozen=True, slots=True)
class _Part:
    part: Watched
    bring_back: BringBack | None
    health: PartHealth


class ClusterWatch:
    """One per job. All methods belong to one event loop."""

    def __init__(
        self,
        on_change: Callable[[frozenset[str]], Awaitable[None]],
        *,
        period_s: float,
        deadline_s: float,
        restart_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` hears of all parts that get no work, by their ids, whenever these are others than
        before."""
        self._on_change = on_change
        self._period_s = period_s
        self._deadline_s = deadline_s
        self._restart_after_s = restart_after_s
        self._clock = clock
        self.broken: dict[str, str] = {}
        """By engine, the last error that ended its loop, although it may be restarted by now."""
        self._parts: dict[str, _Part] = {}
        self._told: frozenset[str] = frozenset()
        self._telling = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, name: str, part: Watched, bring_back: BringBack | None = None) -> None:
        """Watch this one too. Without `bring_back` it stays dead until it answers by itself."""
        self._parts[name] = _Part(part, bring_back, PartHealth(self._restart_after_s))
        self._tasks.append(asyncio.create_task(self._watch(name)))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def absent(self) -> frozenset[str]:
        """Parts that get no work now."""
        return frozenset(name for name, part in self._parts.items() if not part.health.serves)

    def health(self, name: str) -> PartHealth:
        return self._parts[name].health

    @property
    def ailing(self) -> dict[str, Health]:
        """Parts that are not as they should be, and how they are."""
        states = {name: part.health.state for name, part in self._parts.items()}
        return {name: state for name, state in states.items() if state is not Health.HEALTHY}

    def figures(self) -> dict[str, float]:
        """Parts by how they are, and restarts so far."""
        counts = Counter(part.health.state for part in self._parts.values())
        restarts = sum(part.health.num_restarts for part in self._parts.values())
        return {state.value: float(counts[state]) for state in Health} | {"restarts": float(restarts)}

    async def lose(self, name: str, why: str) -> None:
        """The part is of no use any more, whatever it would answer; returns when that is known to all."""
        self._parts[name].health.gone(self._clock(), why)
        await self._tell()

    # -- inside --------------------------------------------------------------------------------------

    async def _watch(self, name: str) -> None:
        part, health = self._parts[name].part, self._parts[name].health
        while True:
            await asyncio.sleep(self._period_s)
            served = health.serves
            await self._ask(name, part, health)
            if health.serves != served:
                logger.warning(
                    "%s %s", name, "is back" if health.serves else f"is of no use now: {health.why}"
                )
            await self._tell()
            if health.wants_restart(self._clock()):
                await self._bring_back(name)

    async def _ask(self, name: str, part: Watched, health: PartHealth) -> None:
        """Once; and once more if there is no answer."""
        for _ in range(_QUESTIONS):
            try:
                async with asyncio.timeout(self._deadline_s / _QUESTIONS):
                    pid = await part.alive()
                health.answered(self._clock(), pid)
                return
            except TimeoutError:
                health.missed(self._clock(), f"no answer within {self._deadline_s} s")
            except EngineFailed as error:
                if isinstance(error, EngineBroken):
                    self.broken[name] = str(error)
                health.gone(self._clock(), str(error))
                return

    async def _bring_back(self, name: str) -> None:
        bring_back, health = self._parts[name].bring_back, self._parts[name].health
        if bring_back is None:
            return
        health.restarting()
        began_s = self._clock()
        try:
            await bring_back(health)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
            health.failed(self._clock(), f"{type(error).__name__}: {error}")
            logger.warning("%s could not be restarted: %s", name, health.why)
        else:
            health.back()
            logger.warning("%s has been restarted in %.1f s", name, self._clock() - began_s)
        await self._tell()

    async def _tell(self) -> None:
        """One piece of news after the other, and none that is old by the time it is told."""
        async with self._telling:
            absent = self.absent
            if absent != self._told:
                self._told = absent
                await self._on_change(absent)

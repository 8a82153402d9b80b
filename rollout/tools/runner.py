"""Calls tools: each call in time, each tool within its places, and a tool that keeps failing is left alone.

Whatever a tool does, a call ends: with a text, or with a ToolError whose message is meant for the model. A
sync function runs in a thread of its own. One that does not return in time cannot be ended: its call is,
and it keeps its place.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rollout.environment import ToolError
from rollout.own_thread import in_own_thread
from rollout.tools.breaker import CircuitBreaker
from rollout.tools.config import ToolsConfig
from rollout.tools.figures import ToolFigures, ToolReport
from rollout.tools.tool import Tool, result_text


class _Station:
    """One tool at its work: its places, its breaker and its figures. Tools of one name share it."""

    def __init__(self, tool: Tool, config: ToolsConfig) -> None:
        self.places = asyncio.Semaphore(tool.traits.max_concurrent or config.max_concurrent)
        self.breaker = CircuitBreaker(config.failures_to_cut_off, config.cut_off_s)
        self.figures = ToolFigures()


class _Failed(Exception):
    """An attempt that raised or took too long."""


class ToolRunner:
    """Belongs to one event loop."""

    def __init__(
        self,
        config: ToolsConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self._clock = clock
        self._chance = chance
        self._stations: dict[str, _Station] = {}
        self._malformed_calls = 0

    async def call(self, tool: Tool, arguments: Mapping[str, object]) -> str:
        """What the tool gave, as text. Raises ToolError; MalformedCall if the arguments are not its own."""
        given = tool.read(arguments)
        station = self._stations.setdefault(tool.name, _Station(tool, self.config))
        station.figures.calls += 1
        attempts = self.config.attempts if tool.traits.idempotent else 1
        for attempt in range(1, attempts + 1):
            self._refuse_if_cut_off(tool.name, station)
            try:
                return await self._attempt(tool, given, station)
            except _Failed as failure:
                if attempt == attempts:
                    raise ToolError(f"{tool.name} {failure}") from failure.__cause__
            station.figures.retries += 1
            await asyncio.sleep(2 * self._chance() * self.config.backoff_s * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    def note_malformed(self) -> None:
        """Count a call that reached no tool."""
        self._malformed_calls += 1

    def report(self) -> ToolReport:
        """What happened since the start."""
        return ToolReport(self._malformed_calls, {name: s.figures for name, s in self._stations.items()})

    def _refuse_if_cut_off(self, name: str, station: _Station) -> None:
        seconds = station.breaker.refuses_for_s(self._clock())
        if seconds > 0:
            station.figures.cut_off += 1
            raise ToolError(
                f"{name} keeps failing and is cut off for another {seconds:.0f} s; go on without it"
            )

    async def _attempt(self, tool: Tool, given: dict[str, Any], station: _Station) -> str:
        timeout_s = tool.traits.timeout_s or self.config.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await station.places.acquire()
        except TimeoutError:
            raise ToolError(f"{tool.name} is busy; try again later") from None
        started_s, ok = self._clock(), False
        try:
            async with asyncio.timeout(timeout_s) as limit:
                result = await _start(tool, given, station.places)
            ok = True
            return result_text(result)
        except ToolError:
            ok = True  # the tool works, and says no
            station.figures.refused += 1
            raise
        except Exception as error:  # a tool is other people's code
            if isinstance(error, TimeoutError) and limit.expired():
                station.figures.timeouts += 1
                raise _Failed(f"did not answer within {timeout_s:g} s") from None
            raise _Failed(f"failed: {type(error).__name__}: {error}".partition("\n")[0]) from error
        finally:
            now_s = self._clock()
            station.figures.failures += not ok
            station.figures.latency.add(now_s - started_s)
            station.breaker.note(ok=ok, now_s=now_s)


async def _start(tool: Tool, given: dict[str, Any], places: asyncio.Semaphore) -> object:
    """Run the function, which has one of `places`; it is given back when the function ends."""
    if not inspect.iscoroutinefunction(tool.function):
        return await in_own_thread(partial(tool.function, **given), on_end=places.release)
    try:
        return await tool.function(**given)
    finally:
        places.release()

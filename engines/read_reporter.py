"""Tells the scheduler what a node has still to read, and does what it answers.

While there is something to read a report goes out now and then, and one more when the queue runs empty; one
is on its way at most. Reports are totals, so one that is lost costs nothing but time: the last one of a busy
stretch is sent again until it arrives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from engines.errors import EngineFailed
from engines.read_messages import MoveOrder, ReadReport

logger = logging.getLogger(__name__)

_ANSWER_DEADLINE_S = 10.0
_LONGEST_PAUSE_S = 2.0
"""Between two tries to reach a scheduler that does not answer."""

SendReport = Callable[[ReadReport], Awaitable[tuple[MoveOrder, ...]]]


class ReadReporter:
    """One per node, on its event loop."""

    def __init__(
        self,
        send: SendReport,
        look: Callable[[], ReadReport],
        obey: Callable[[MoveOrder], None],
        period_s: float,
    ) -> None:
        """`look` says how things stand now; `obey` gives up what an order names."""
        self._send = send
        self._look = look
        self._obey = obey
        self._period_s = period_s
        self._ran_empty = asyncio.Event()
        self._has_news = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """There is something to read."""
        self._has_news = True
        self._ran_empty.clear()
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    def run_empty(self) -> None:
        """There is nothing to read any more."""
        self._ran_empty.set()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        pause_s = self._period_s
        while self._has_news:
            await self._pause(self._period_s)
            self._has_news = not self._ran_empty.is_set()
            if await self._report():
                pause_s = self._period_s
            else:
                self._has_news = True
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _pause(self, seconds: float) -> None:
        """Until the queue runs empty, but no longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ran_empty.wait()

    async def _report(self) -> bool:
        """Whether it arrived."""
        try:
            async with asyncio.timeout(_ANSWER_DEADLINE_S):
                orders = await self._send(self._look())
        except (EngineFailed, TimeoutError) as error:
            logger.warning("a report of reads did not arrive: %s", error or "no answer")
            return False
        for order in orders:
            self._obey(order)
        return True

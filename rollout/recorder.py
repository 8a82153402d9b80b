"""Brings what agent workers tell of finished turns into the journal, while a step runs.

A worker's turns travel in batches: as many as have ended since it was asked last. A journal that cannot be
written ends the step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from engines.errors import EngineError
from rollout.journal import JournalWriter

_WAIT_S = 5.0
"""A worker with no news answers after so long."""
_ASK_DEADLINE_S = 30.0
_ASK_AGAIN_S = 0.5
"""A worker that is not there."""
_LAST_DEADLINE_S = 2.0
"""For what is left at the end; a resumption would play it again."""


class Recording(Protocol):
    """An agent worker that keeps records until they are come for."""

    async def records(self, after: int, wait_s: float) -> tuple[int, list[bytes]]:
        """Records from number `after` on, and the number of the next; those before `after` are forgotten.

        Where there are none yet, it waits for some.
        """


class Recorder:
    """One for all steps of a run."""

    def __init__(self, workers: Sequence[Recording]) -> None:
        self._workers = workers
        self._next = [0] * len(workers)
        """Of each worker, the number of the first record that is not written."""

    @asynccontextmanager
    async def recording(self, journal: JournalWriter, sync_s: float) -> AsyncIterator[None]:
        """Inside, what the workers tell is written; on the way out, what they still have.

        A journal that cannot be written ends the block with JournalError.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._listen(i, journal)) for i in range(len(self._workers))]
                tasks.append(group.create_task(_sync_now_and_then(journal, sync_s)))
                yield
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            error = errors.exceptions[0]
            raise error from error.__cause__
        await asyncio.gather(*(self._take_the_rest(i, journal) for i in range(len(self._workers))))

    async def _listen(self, index: int, journal: JournalWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(_ASK_DEADLINE_S):
                    await self._take(index, journal, _WAIT_S)
            except TimeoutError:  # a slow one is asked again
                continue
            except EngineError:  # one that is brought back counts from the start
                self._next[index] = 0
                await asyncio.sleep(_ASK_AGAIN_S)

    async def _take_the_rest(self, index: int, journal: JournalWriter) -> None:
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(_LAST_DEADLINE_S):
                await self._take(index, journal, 0.0)

    async def _take(self, index: int, journal: JournalWriter, wait_s: float) -> None:
        after, frames = await self._workers[index].records(self._next[index], wait_s)
        if frames:  # left in the middle, they are written twice, which a reader sees
            await asyncio.to_thread(journal.append, frames)
        self._next[index] = after


async def _sync_now_and_then(journal: JournalWriter, sync_s: float) -> None:
    while True:
        await asyncio.sleep(sync_s)
        await asyncio.to_thread(journal.sync)

"""Who does not answer any more, as the scheduler's watch has found, and calls that end then.

It decides nothing and asks nobody: it is told the whole set each time it changes. A part is an engine or a
node, by its id. A call that is given up goes on at its peer, if there is still one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from engines.errors import EngineFailed

T = TypeVar("T")


class Absences:
    """What one process knows of it. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._absent: frozenset[str] = frozenset()
        self._calls: dict[asyncio.Task[Any], str] = {}

    def __contains__(self, part: str) -> bool:
        return part in self._absent

    def set(self, absent: frozenset[str]) -> None:
        """These are the parts that do not answer now; calls to them end."""
        self._absent = absent
        for call, part in self._calls.items():
            if part in absent:
                call.cancel()

    async def unless_absent(self, part: str, call: Coroutine[Any, Any, T]) -> T:
        """What `call` of `part` returns; EngineFailed as soon as the part is known to be absent."""
        if part in self._absent:
            call.close()
            raise EngineFailed(f"{part} does not answer")
        task = asyncio.ensure_future(call)
        self._calls[task] = part
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and part in self._absent and not _is_cancelled():
                raise EngineFailed(f"{part} does not answer") from None
            task.cancel()
            raise
        finally:
            del self._calls[task]


def _is_cancelled() -> bool:
    """Whether it is the caller that is to end."""
    caller = asyncio.current_task()
    return caller is not None and caller.cancelling() > 0

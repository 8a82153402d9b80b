"""Where a trajectory must stop, whatever its agent wants.

The bounds, and the two clocks that enforce those in seconds: a deadline on one wait, and a wall time
that an abort can bring forward.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one trajectory."""

    max_turns: int
    """Most model calls."""
    max_context_tokens: int
    """Most tokens of the context; a turn that would not fit is not started."""
    wall_time_s: float
    """Longest the whole trajectory may take."""
    turn_deadline_s: float
    """Longest one model call may take, retries included."""
    tool_timeout_s: float
    """Longest the environment may take over one reply."""

    def __post_init__(self) -> None:
        checks = (
            (self.max_turns >= 1, "max_turns", ">= 1", self.max_turns),
            (self.max_context_tokens >= 2, "max_context_tokens", ">= 2", self.max_context_tokens),
            (self.wall_time_s > 0, "wall_time_s", "> 0", self.wall_time_s),
            (self.turn_deadline_s > 0, "turn_deadline_s", "> 0", self.turn_deadline_s),
            (self.tool_timeout_s > 0, "tool_timeout_s", "> 0", self.tool_timeout_s),
        )
        for ok, name, bounds, value in checks:
            if not ok:
                raise ValueError(f"limits.{name} must be {bounds}, got {value}")


@asynccontextmanager
async def deadline(seconds: float, late: Exception) -> AsyncIterator[None]:
    """Raise `late` if the block takes longer than `seconds`; its own errors pass through."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise late from error


@asynccontextmanager
async def expire_on(abort: asyncio.Event | None, wall: asyncio.Timeout) -> AsyncIterator[None]:
    """Let `wall` expire as soon as `abort` is set."""
    if abort is None:
        yield
        return
    watcher = asyncio.create_task(_expire(abort, wall))
    try:
        yield
    finally:
        watcher.cancel()


async def _expire(abort: asyncio.Event, wall: asyncio.Timeout) -> None:
    await abort.wait()
    if not wall.expired():
        wall.reschedule(asyncio.get_running_loop().time())

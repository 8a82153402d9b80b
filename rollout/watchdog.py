"""Says who waits where when nothing moves any more.

Nothing moves when no agent has begun a phase or ended a turn for `stall_s`. Then the oldest trajectories are
named in the log, and the stacks of the driver and of the agent workers go to a file. It is told once, and
again each time the silence has doubled. A process whose event loop is held up cannot say so itself: the
standard library's faulthandler writes its threads to the same file, from a thread of its own.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from rollout.glance import Glance

logger = logging.getLogger(__name__)
_LOOKS = 10
"""So often during stall_s."""
_LOOK_EVERY_S = 5.0
"""At most so long between two looks."""


class StallPolicy:
    """Whether to speak up. Pure: it is told the time."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._moved: tuple[int, float] | None = None
        """Moves so far, and when they were others than before."""
        self._tell_after_s = stall_s

    def told(self, now_s: float, glance: Glance) -> float | None:
        """For how long nothing has moved, if that is to be said now."""
        if self._moved is None or self._moved[0] != glance.num_moves or not (glance.oldest or glance.silent):
            self._moved = glance.num_moves, now_s
            self._tell_after_s = self._stall_s
            return None
        still_s = now_s - self._moved[1]
        if still_s < self._tell_after_s:
            return None
        self._tell_after_s = 2 * still_s
        return still_s


class Watched(Protocol):
    """Whoever knows what agents do."""

    async def glance(self, num_oldest: int) -> Glance: ...

    async def stacks(self) -> Mapping[str, str]:
        """By process."""


class LoopAlarm:
    """Writes this process's threads to a file when nobody has put it off for `stall_s`."""

    def __init__(self, path: Path, stall_s: float) -> None:
        """A file that cannot be opened, as its folder is another host's, is done without."""
        self._stall_s = stall_s
        self._path = path
        self._file: TextIO | None = None
        with suppress(OSError):
            self._file = path.open("a", encoding="utf-8")

    def put_off(self) -> None:
        """The event loop is alive."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._stall_s, file=self._file)

    def stop(self) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Leave no empty file behind. Idempotent."""
        self.stop()
        if self._file is not None:
            self._file.close()
            self._file = None
            if self._path.exists() and not self._path.stat().st_size:
                self._path.unlink()


class Watchdog:
    """Looks at `watched` until left: `async with Watchdog(...)`."""

    def __init__(
        self,
        watched: Watched,
        path: Path,
        *,
        stall_s: float,
        num_oldest: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._watched = watched
        self._path = path
        self._policy = StallPolicy(stall_s)
        self._alarm = LoopAlarm(path, stall_s)
        self._num_oldest = num_oldest
        self._look_every_s = min(_LOOK_EVERY_S, stall_s / _LOOKS)
        self._clock = clock
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._alarm.close()

    async def _watch(self) -> None:
        while True:
            self._alarm.put_off()
            glance = await self._watched.glance(self._num_oldest)
            still_s = self._policy.told(self._clock(), glance)
            if still_s is not None:
                await self._tell(still_s, glance)
            await self._sleep(self._look_every_s)

    async def _tell(self, still_s: float, glance: Glance) -> None:
        waiting = "; ".join(
            [
                *map(str, glance.oldest),
                *(f"{name} does not answer" for name in glance.silent),
                *glance.ailing,
            ]
        )
        logger.warning("nothing has moved for %.0f s: %s; stacks are in %s", still_s, waiting, self._path)
        parts = [f"=== {time.strftime('%H:%M:%S')}: nothing has moved for {still_s:.0f} s: {waiting}\n"]
        parts += [f"--- {name}\n{text}\n" for name, text in (await self._watched.stacks()).items()]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n".join(parts))
        except OSError as error:
            logger.warning("the stacks cannot be written to %s: %s", self._path, error)

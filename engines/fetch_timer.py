"""When groups of engines fetch turns: once per period at most, so what arrives meanwhile is one batch."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable


class FetchTimer:
    """One per scheduler, on its event loop."""

    def __init__(
        self,
        period_s: float,
        *,
        clock: Callable[[], float],
        wanted: Callable[[], bool],
        fetch: Callable[[float], bool],
    ) -> None:
        """`wanted`: whether anybody waits who may be placed. `fetch` has all groups fetch once, at the time
        it is told; whether that was of any use."""
        self._period_s = period_s
        self._clock = clock
        self._wanted = wanted
        self._fetch = fetch
        self._last_s = -sys.float_info.max
        self._alarm: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Fetch at once, or once the time since the last fetch is long enough; again while it is of use."""
        while self._alarm is None and self._wanted():
            wait_s = self._last_s + self._period_s - self._clock()
            if wait_s > 0:
                self._alarm = asyncio.get_running_loop().call_later(wait_s, self._ring)
            elif not self._fetch_now():
                break

    def _ring(self) -> None:
        self._alarm = None
        if self._wanted() and self._fetch_now():
            self.soon()

    def _fetch_now(self) -> bool:
        self._last_s = self._clock()
        return self._fetch(self._last_s)

"""Parts of a one-process cluster that can be killed and made anew behind proxies that stay good."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from engines.errors import EngineFailed
from engines.types import NodeId


class Restartable:
    """A part, as others call it, in whichever of its lives it is."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lives = itertools.count(1)
        self._calls: set[asyncio.Future[Any]] = set()
        self._part: Any = None
        self._begin()

    def _begin(self) -> None:
        """A new life, which knows nothing of those before."""
        self._part, self._life = self._make(), next(self._lives)

    async def kill(self) -> None:
        """Whoever waits for an answer gets none."""
        part, self._part = self._part, None
        for call in self._calls:
            call.cancel()
        if hasattr(part, "close"):
            await part.close()

    async def alive(self) -> int:
        await self.__getattr__("alive")()
        return self._life

    def check(self) -> None:
        self._part.check()

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self._part is None:
                raise EngineFailed("it is dead")
            answer = asyncio.ensure_future(getattr(self._part, method)(*args, **kwargs))
            self._calls.add(answer)
            answer.add_done_callback(self._calls.discard)
            await asyncio.wait([answer])
            if answer.cancelled():
                raise EngineFailed("it is dead")
            return answer.result()

        return call


async def spawn_restartable(
    cls: type,
    *args: object,
    name: str,
    node: NodeId | None,
    gpu: bool = False,
    restarts: bool = False,
    **kw: Any,
) -> Any:
    return Restartable(lambda: cls(*args, **kw))


async def restart(part: Restartable) -> None:
    await part.kill()
    part._begin()

"""An iterable that is iterated on one thread and read on another thread's event loop.

Weights are gathered by collectives on the thread that trains, and sent by the loop of a backend: the loop
asks for each item, and the thread answers. Nothing is fetched before it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
_END = object()


class Pulled(Generic[Item]):
    """One pass over `items`: `serve` on their thread, `async for` on the loop."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._asked: SimpleQueue[Future[object] | None] = SimpleQueue()

    def serve(self) -> None:
        """Answer until `stop`. What an item raises is raised where it was asked for."""
        while (answer := self._asked.get()) is not None:
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                item: object = next(self._items, _END)
            except Exception as error:  # noqa: BLE001 - carried to whoever asked
                answer.set_exception(error)
            else:
                answer.set_result(item)

    def stop(self, _: object = None) -> None:
        """Nobody asks any more."""
        self._asked.put(None)

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            answer: Future[object] = Future()
            self._asked.put(answer)
            item = await asyncio.wrap_future(answer)
            if item is _END:
                return
            yield cast("Item", item)

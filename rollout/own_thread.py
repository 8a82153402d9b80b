"""A blocking function in a thread of its own, for code that may never return.

A pool's threads would be used up by such functions. This thread is a daemon: it holds up neither its
caller, who stops waiting when it likes, nor the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(
    function: Callable[[], Result], *, on_end: Callable[[], None] = lambda: None
) -> asyncio.Future[Result]:
    """Start it; the future has what it returns or raises. `on_end` is called on the loop when it ends."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result] = loop.create_future()

    def finish(result: Result | None, error: BaseException | None) -> None:
        on_end()
        if answer.done():  # nobody waits any more
            return
        if error is None:
            answer.set_result(result)  # type: ignore[arg-type]
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            answer.set_exception(error)
        else:  # what a future cannot carry
            answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - carried to the caller
            error = raised
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name=getattr(function, "__name__", "call"), daemon=True).start()
    return answer

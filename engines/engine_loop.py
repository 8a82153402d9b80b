"""An engine's loop: the one thread that touches the model and the block table.

Actor methods only put a message into the inbox. The loop empties the inbox, takes one step, and sleeps only
when a step had nothing to do. A step that raises ends the loop, and everybody who waits is told.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from engines.errors import EngineFailed

logger = logging.getLogger(__name__)
T = TypeVar("T")
_IDLE_S = 0.5


class EngineLoop:
    """Runs `step` for ever. `step` returns whether it did anything."""

    def __init__(self, name: str, step: Callable[[], bool], on_failure: Callable[[str], None]) -> None:
        self._name = name
        self._step = step
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def failure(self) -> str | None:
        """What ended it; None while it runs."""
        return self._failure

    def start(self) -> None:
        self._thread.start()

    def post(self, message: Callable[[], None]) -> None:
        """Run `message` on the loop's thread before its next step."""
        if self._failure is not None:
            raise EngineFailed(self._failure)
        self._inbox.put(message)

    async def call(self, function: Callable[[], T], deadline_s: float) -> T:
        """Run `function` on the loop's thread and return what it returned.

        It runs even if the caller does not wait for it any more.
        """
        future: Future[T] = Future()

        def message() -> None:
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - handed to the caller
                future.set_exception(error)

        self.post(message)
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            raise EngineFailed(f"{self._name} did not answer within {deadline_s} s") from None

    def stop(self, deadline_s: float) -> None:
        """End the loop after the step it is in."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(deadline_s)

    def _run(self) -> None:
        try:
            busy = False
            while self._drain(wait=not busy):
                busy = self._step()
        except Exception as error:
            logger.exception("%s failed", self._name)
            self._failure = f"{self._name} failed: {type(error).__name__}: {error}"
            self._on_failure(self._failure)

    def _drain(self, *, wait: bool) -> bool:
        """Run all messages; False if one of them says stop."""
        timeout: dict[str, Any] = {"timeout": _IDLE_S} if wait else {"block": False}
        while True:
            try:
                message = self._inbox.get(**timeout)
            except queue.Empty:
                return True
            if message is None:
                return False
            message()
            timeout = {"block": False}

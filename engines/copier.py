"""Copies between a decode engine's HBM and its node's staging memory, beside the engine's steps.

One thread makes the copies it is given, in that order; on a GPU, on a stream of its own. The engine loop
gives it copies and is told on the loop when each has ended. It does not know what is copied: whoever asks for
a copy sees to it that until its end no step touches what it reads or writes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import torch

from engines.errors import EngineFailed

T = TypeVar("T")
Message = Callable[[], None]


class Copier:
    """One direction of an engine's host-device copies. `copy` belongs to the engine loop."""

    def __init__(self, name: str, device: torch.device, run_on_loop: Callable[[Message], None]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._run_on_loop = run_on_loop

    def copy(self, move: Callable[[], T], then: Callable[[Future[T]], None]) -> Future[T]:
        """Have the thread call `move`, and the loop call `then` with what became of it.

        The future may be cancelled for as long as its copy has not begun; `then` is called all the same.
        """
        begun_after = None
        if self._stream is not None:
            begun_after = torch.cuda.current_stream(self._stream.device).record_event()
        future = self._thread.submit(self._move, move, begun_after)
        future.add_done_callback(lambda done: self._tell(lambda: then(done)))
        return future

    def close(self) -> None:
        """Return when the copy that runs has ended; what has not begun is left. Idempotent."""
        self._thread.shutdown(cancel_futures=True)

    def _move(self, move: Callable[[], T], begun_after: torch.cuda.Event | None) -> T:
        if self._stream is None or begun_after is None:
            return move()
        with torch.cuda.stream(self._stream):
            # What the loop's steps wrote before is there to be read.
            self._stream.wait_event(begun_after)
            result = move()
            self._stream.synchronize()
        return result

    def _tell(self, message: Message) -> None:
        with suppress(EngineFailed):  # of a loop that has ended nobody waits for a copy
            self._run_on_loop(message)

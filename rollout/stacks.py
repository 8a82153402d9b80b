"""What a process is doing, as text: its threads and the coroutines of its event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Coroutine
from types import FrameType
from typing import Any


def stacks() -> str:
    """All threads, and all tasks of the running event loop; tasks that wait at one place are counted."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    ]
    waiting = Counter(_where(task) for task in asyncio.all_tasks())
    parts += [f"{count} tasks:\n{where}" for where, count in waiting.most_common()]
    return "\n".join(parts)


def _where(task: asyncio.Task[Any]) -> str:
    """The calls a task waits in, outermost first."""
    lines: list[str] = []
    waiter: object = task.get_coro()
    while waiter is not None:
        frame = _frame_of(waiter)
        if frame is not None:
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}\n')
        waiter = _waits_for(waiter)
    return "".join(lines) or "  (running)\n"


def _frame_of(waiter: object) -> FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame = getattr(waiter, name, None)
        if frame is not None:
            assert isinstance(frame, FrameType)
            return frame
    return None


def _waits_for(waiter: object) -> Coroutine[Any, Any, Any] | None:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        inner = getattr(waiter, name, None)
        if inner is not None:
            found: Coroutine[Any, Any, Any] = inner
            return found
    return None

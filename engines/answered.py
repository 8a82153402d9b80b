"""Waits for a peer's answer, and no longer: a process that is stopped keeps its own deadlines no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from engines.errors import EngineFailed

T = TypeVar("T")


async def answered(what: str, call: Awaitable[T], deadline_s: float) -> T:
    """The answer to `call`; EngineFailed, which names `what`, if there is none by the deadline.

    The call itself goes on at the peer, if there is still one.
    """
    answer = asyncio.ensure_future(call)
    try:
        await asyncio.wait([answer], timeout=deadline_s)
    finally:
        in_time = answer.done()
        answer.cancel()
    if not in_time:
        raise EngineFailed(f"{what} gave no answer within {deadline_s:.0f} s")
    return answer.result()

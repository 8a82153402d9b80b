"""Answers as server-sent events.

The first event waits for the first token, so that what is wrong with a request is told by its status. Whoever
leaves the stream early takes the request back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from rollout.serve.errors import ApiError
from rollout.serve.served_model import OnText, Reply
from rollout.serve.writer import Writer


async def events(reply: Callable[[OnText], Awaitable[Reply]], writer: Writer) -> AsyncIterator[bytes]:
    """The answer as server-sent events, the first of them with the first token."""
    heard: asyncio.Queue[str | None] = asyncio.Queue()
    serving = asyncio.ensure_future(reply(heard.put_nowait))
    serving.add_done_callback(lambda _: heard.put_nowait(None))
    try:
        text = await heard.get()
        if text is None:
            await serving  # it failed before its first token, or had none to tell
        for chunk in writer.began():
            yield as_event(chunk)
        while text is not None:
            if text:
                yield as_event(writer.text(text))
            text = await heard.get()
        try:
            for chunk in writer.ended(await serving):
                yield as_event(chunk)
        except ApiError as error:
            yield as_event(error.body())
        yield b"data: [DONE]\n\n"
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def as_event(chunk: Mapping[str, Any]) -> bytes:
    """As a stream holds it."""
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"

"""What every request passes before it reaches a route: token, size, number and time; and who watches its
client.

The whole body is read here, within its limits. Then the route runs in a task that is cancelled when its
client goes away or its time is over, so whatever it does at the engines is taken back. A plain ASGI
application around another; it knows no route but the one that everybody may ask.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rollout.serve.config import ServeConfig
from rollout.serve.errors import ApiError
from rollout.serve.stream import as_event

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
OnServed = Callable[[str, int, float], None]
"""Hears of a request that was answered: its route, its status, its seconds. 499: its client went away."""

OPEN_TO_ALL = "/health"
CLIENT_GONE = 499
_NO_ROUTE = "none"


class Gate:
    """Around an ASGI application."""

    def __init__(
        self, inner: Application, config: ServeConfig, token: str | None, on_served: OnServed
    ) -> None:
        """`token`: what clients must bring; None: nothing."""
        self._inner = inner
        self._config = config
        self._token = None if token is None else f"Bearer {token}".encode()
        self._on_served = on_served
        self.num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started_s, answer = time.monotonic(), _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except ApiError as error:
            await answer.fail(error)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._on_served(route, answer.status or CLIENT_GONE, time.monotonic() - started_s)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        self._admit(scope)
        counts = scope["method"] == "POST"
        if counts and self.num_running >= self._config.max_requests:
            raise ApiError(
                429,
                f"{self.num_running} requests are under way, as many as serve.max_requests allows; "
                "come back later",
                code="busy",
            )
        self.num_running += counts
        timeout_s = self._config.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._body(scope, receive)
                if body is not None:
                    await self._run(scope, body, receive, answer)
        except TimeoutError:
            raise ApiError(
                504, f"the request was not done within serve.request_timeout_s={timeout_s:g}", code="late"
            ) from None
        finally:
            self.num_running -= counts

    def _admit(self, scope: Scope) -> None:
        if self._token is None or scope["path"] == OPEN_TO_ALL:
            return
        brought = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(brought, self._token):
            raise ApiError(401, "this endpoint wants its bearer token as the API key", code="invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """None: the client went away. Raises ApiError if it is too long."""
        most = self._config.max_body_bytes
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        parts, size, more = [], int(told) if told.isdigit() else 0, True
        while more and size <= most:
            event = await receive()
            if event["type"] == "http.disconnect":
                return None
            parts.append(event.get("body", b""))
            size, more = sum(map(len, parts)), event.get("more_body", False)
        if size > most:
            raise ApiError(413, f"the body is longer than serve.max_body_bytes={most}", code="body_too_long")
        return b"".join(parts)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """The route, until it is through or its client is gone."""
        unread = [body]

        async def replay() -> Event:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await asyncio.Event().wait()  # type: ignore[return-value]  # nothing more will come

        route = asyncio.ensure_future(self._inner(scope, replay, answer))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait([route, gone], return_when=asyncio.FIRST_COMPLETED)
            if route.done():
                route.result()
        finally:
            for task in (route, gone):
                task.cancel()
            await asyncio.gather(route, gone, return_exceptions=True)


class _Answer:
    """What has been sent to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        """0: nothing yet."""

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
        await self._send(event)

    async def fail(self, error: ApiError) -> None:
        """Say what was wrong; an answer that has begun is a stream, and ends with it."""
        if self.status:
            self.status = error.status
            await self._send(
                {"type": "http.response.body", "body": as_event(error.body()), "more_body": False}
            )
            return
        headers = {"content-type": "application/json", "connection": "close", **error.headers}
        await self(
            {
                "type": "http.response.start",
                "status": error.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self({"type": "http.response.body", "body": json.dumps(error.body()).encode()})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

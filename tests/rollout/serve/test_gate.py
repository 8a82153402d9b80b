"""What passes the gate, as a server hands it over: no network, no routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from rollout.compose import load_config
from rollout.serve.gate import CLIENT_GONE, Gate

Event = dict[str, Any]
CONFIG = load_config(["serve.max_body_bytes=10", "serve.request_timeout_s=0.2", "serve.max_requests=1"]).serve


class Connection:
    """One request, and what was sent back."""

    def __init__(
        self, body: bytes = b"{}", headers: tuple[tuple[bytes, bytes], ...] = (), **scope: Any
    ) -> None:
        self.scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": headers, **scope}
        self.gone = asyncio.Event()
        self.sent: list[Event] = []
        self._unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> Event:
        if self._unread:
            return self._unread.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        self.sent.append(event)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def error(self) -> Any:
        return json.loads(self.sent[1]["body"])["error"]["code"]


async def answers(scope: Any, receive: Any, send: Callable[[Event], Awaitable[None]]) -> None:
    event = await receive()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": event["body"]})


class Hangs:
    """A route that never ends by itself."""

    def __init__(self, *, begins: bool = False) -> None:
        self.entered = asyncio.Event()
        self.cancelled = False
        self._begins = begins

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Event], Awaitable[None]]) -> None:
        if self._begins:
            await send({"type": "http.response.start", "status": 200})
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


served: list[tuple[int, str]] = []


def gate(inner: Any, token: str | None = None, **changes: Any) -> Gate:
    served.clear()
    return Gate(
        inner, replace(CONFIG, **changes), token, lambda route, status, _: served.append((status, route))
    )


def serve(door: Gate, connection: Connection) -> Connection:
    asyncio.run(door(connection.scope, connection.receive, connection.send))
    return connection


def test_a_body_is_handed_on_whole_and_one_that_is_too_long_is_not() -> None:
    assert serve(gate(answers), Connection(b"0123456789")).sent[1]["body"] == b"0123456789"
    assert serve(gate(answers), Connection(b"0123456789a")).error == "body_too_long"
    told = Connection(b"", headers=((b"content-length", b"11"),))
    assert (serve(gate(answers), told).status, told.error) == (413, "body_too_long")


def test_a_token_is_compared_and_health_needs_none() -> None:
    def with_token(value: bytes) -> Connection:
        return Connection(headers=((b"authorization", value),))

    door = gate(answers, token="secret")
    assert serve(door, with_token(b"Bearer secret")).status == 200
    for wrong in (b"Bearer other", b"secret", b"", "Bearer é".encode()):
        assert serve(door, with_token(wrong)).error == "invalid_api_key"
    assert serve(door, Connection(path="/health", method="GET")).status == 200


def test_a_route_that_takes_too_long_is_ended() -> None:
    route = Hangs()
    late = serve(gate(route), Connection())
    assert (late.status, late.error, route.cancelled) == (504, "late", True)
    begun = serve(gate(Hangs(begins=True)), Connection())
    start, end = begun.sent
    assert (start["status"], end["more_body"]) == (200, False)
    assert json.loads(end["body"].removeprefix(b"data: "))["error"]["code"] == "late"
    assert served == [(504, "none")]


def test_a_client_that_goes_away_ends_its_route() -> None:
    route = Hangs()
    door = gate(route, request_timeout_s=60.0)

    async def leave() -> Connection:
        connection = Connection()
        serving = asyncio.create_task(door(connection.scope, connection.receive, connection.send))
        await route.entered.wait()
        assert door.num_running == 1
        connection.gone.set()
        await asyncio.wait_for(serving, 10)
        return connection

    assert asyncio.run(leave()).sent == []
    assert route.cancelled
    assert door.num_running == 0
    assert served == [(CLIENT_GONE, "none")]


def test_one_more_than_the_most_is_told_to_come_back() -> None:
    async def crowd() -> tuple[Connection, Connection]:
        route = Hangs()
        door = gate(route)
        first, second = Connection(), Connection()
        serving = asyncio.create_task(door(first.scope, first.receive, first.send))
        await route.entered.wait()
        await door(second.scope, second.receive, second.send)
        await serving
        return first, second

    first, second = asyncio.run(crowd())
    assert (second.status, second.error) == (429, "busy")
    assert (b"retry-after", b"1") in second.sent[0]["headers"]
    assert first.status == 504

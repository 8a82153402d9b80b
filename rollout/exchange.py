"""Many calls between two processes in few messages: calls one way, answers the other.

A message between actors costs about as much as what a scheduler does for a turn, so calls are not sent one
by one. An exchange brings all calls made since the last one, and returns with all answers that are ready, as
soon as there is one. The next exchange releases the one that still waits, and until that has come back no
third one is sent: so a call alone costs one message and no delay, and the busier a line is, the more calls
share a message. Calls of one line begin in the order in which they were made.

What carries the bytes, and what a lost peer looks like, is the caller's business.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

Send = Callable[[bytes], Awaitable[bytes]]
_MOST_EXCHANGES = 2
"""One that waits for answers, and one that is on its way."""
_FORGET_S = 600.0
_NONE = pickle.dumps(None)


class NoAnswer(Exception):
    """A call had no answer by its line's deadline; what the other end did is not known."""


class RemoteFailure(Exception):
    """What a call raised there and cannot be carried here as it is."""


class Line:
    """The calling end; all methods belong to one event loop."""

    def __init__(self, send: Send, deadline_s: float) -> None:
        """`send` brings one message to the other end's `Desk.exchange` and returns what that returns.

        A call that has no answer after `deadline_s` raises NoAnswer.
        """
        self._send = send
        self._deadline_s = deadline_s
        self._unsent: list[bytes] = []
        self._answers: dict[int, tuple[asyncio.Future[Any], float]] = {}
        """By number, so from the oldest to the newest: what is waited for, and until when."""
        self._alarm_is_set = False
        self._num_calls = 0
        self._exchanges: set[asyncio.Task[None]] = set()
        self._flush_is_due = False

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> asyncio.Future[Any]:
        """The call's answer, or what it raised. Raises at once what pickling the arguments raises."""
        loop = asyncio.get_running_loop()
        number, self._num_calls = self._num_calls, self._num_calls + 1
        self._unsent.append(pickle.dumps((number, method, args, kwargs), pickle.HIGHEST_PROTOCOL))
        answer: asyncio.Future[Any] = loop.create_future()
        self._answers[number] = answer, loop.time() + self._deadline_s
        if not self._alarm_is_set:
            # One alarm for all: a timer for each call costs more than most calls.
            self._alarm_is_set = True
            loop.call_later(self._deadline_s, self._give_up_late_ones)
        if not self._flush_is_due:
            # Not now: what else is called in this turn of the loop goes along.
            self._flush_is_due = True
            loop.call_soon(self._flush)
        return answer

    def _give_up_late_ones(self) -> None:
        """Nobody waits longer than the deadline; who waits longest now sets the next alarm."""
        self._alarm_is_set = False
        loop = asyncio.get_running_loop()
        for number, (answer, until_s) in list(self._answers.items()):
            if until_s > loop.time():
                self._alarm_is_set = True
                loop.call_at(until_s, self._give_up_late_ones)
                return
            del self._answers[number]
            if not answer.done():
                answer.set_exception(NoAnswer())

    def _flush(self) -> None:
        self._flush_is_due = False
        if len(self._exchanges) >= _MOST_EXCHANGES or not (self._unsent or self._answers):
            return
        if not self._unsent and self._exchanges:
            return  # the one that waits brings the answers
        calls, self._unsent = self._unsent, []
        exchange = asyncio.get_running_loop().create_task(self._exchange(pickle.dumps(calls)))
        self._exchanges.add(exchange)

    async def _exchange(self, message: bytes) -> None:
        try:
            answers = pickle.loads(await self._send(message))
            for number, is_value, content in answers:
                self._settle(number, is_value, content)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._fail(error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._exchanges.discard(task)
            self._flush()

    def _settle(self, number: int, is_value: bool, content: bytes) -> None:
        answer, _ = self._answers.pop(number, (None, 0.0))
        if answer is None or answer.done():  # whoever asked has gone
            return
        value = pickle.loads(content)
        if is_value:
            answer.set_result(value)
        else:
            answer.set_exception(value)

    def _fail(self, error: Exception) -> None:
        """The other end is gone, and with it every answer."""
        answers, self._answers = self._answers, {}
        self._unsent.clear()
        for answer, _ in answers.values():
            if not answer.done():
                answer.set_exception(error)


@dataclass(slots=True)
class _Outbox:
    """Answers for one line that it has not come for yet."""

    answers: list[tuple[int, bool, bytes]] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    num_calls: int = 0
    """Begun and not answered."""
    num_exchanges: int = 0
    """That are here."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody comes for anything, as far as is known here."""
        return not self.num_calls and not self.num_exchanges

    def put(self, number: int, is_value: bool, content: bytes) -> None:
        self.num_calls -= 1
        self.answers.append((number, is_value, content))
        self.waiting.set()

    def release(self) -> None:
        """The exchange that waits returns with what there is; the next one waits in its place."""
        self.waiting.set()
        self.waiting = asyncio.Event()
        if self.answers:
            self.waiting.set()

    def take(self) -> bytes:
        answers, self.answers = self.answers, []
        self.waiting.clear()
        return pickle.dumps(answers)


class Desk:
    """The answering end: calls methods of one object for any number of lines."""

    def __init__(self, served: object, *, forget_s: float = _FORGET_S) -> None:
        """A line that leaves answers lying for `forget_s` gets them no more: its process has gone."""
        self._served = served
        self._forget_s = forget_s
        self._outboxes: dict[str, _Outbox] = {}
        self._calls: set[asyncio.Task[None]] = set()

    async def exchange(self, line: str, message: bytes) -> bytes:
        """Begin the calls; return with answers for `line`, or with none once its next exchange is here."""
        outbox = self._outboxes.setdefault(line, _Outbox())
        outbox.release()
        waiting = outbox.waiting
        outbox.num_exchanges += 1
        try:
            for call in pickle.loads(message):
                self._begin(line, outbox, call)
            await waiting.wait()
            return outbox.take() if waiting is outbox.waiting else pickle.dumps([])
        finally:
            outbox.num_exchanges -= 1
            if outbox.is_idle and not outbox.answers:
                self._outboxes.pop(line, None)

    def _forget(self, line: str) -> None:
        """A line that has not come for its answers in all this time is gone."""
        outbox = self._outboxes.get(line)
        if outbox is not None and outbox.is_idle:
            del self._outboxes[line]

    def _begin(self, line: str, outbox: _Outbox, call: bytes) -> None:
        outbox.num_calls += 1
        number, method, args, kwargs = pickle.loads(call)
        try:
            called = getattr(self._served, method)
            result = called(*args, **kwargs)
            if getattr(called, "never_waits", False):
                outbox.put(number, *_pickled(_run_through(result)))
                return
        except Exception as error:  # noqa: BLE001 - carried to the caller
            outbox.put(number, False, _pickled_error(error))
            return
        if inspect.isawaitable(result):
            task = asyncio.get_running_loop().create_task(self._await(line, outbox, number, result))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        else:
            outbox.put(number, *_pickled(result))

    async def _await(self, line: str, outbox: _Outbox, number: int, result: Awaitable[Any]) -> None:
        try:
            answer = _pickled(await result)
        except asyncio.CancelledError:
            answer = False, _pickled_error(RemoteFailure("the call was cancelled there"))
        except Exception as error:  # noqa: BLE001 - carried to the caller
            answer = False, _pickled_error(error)
        outbox.put(number, *answer)
        if outbox.is_idle:
            asyncio.get_running_loop().call_later(self._forget_s, self._forget, line)


def _run_through(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing (engines.never_waits)."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError(f"{coroutine} has waited")


def _pickled(value: object) -> tuple[bool, bytes]:
    if value is None:
        return True, _NONE
    try:
        return True, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - carried to the caller
        return False, _pickled_error(error)


def _pickled_error(error: Exception) -> bytes:
    """The error itself if it comes back as what it was, else its text."""
    try:
        content = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        pickle.loads(content)
    except Exception:  # noqa: BLE001 - any class may refuse in its own way
        return pickle.dumps(RemoteFailure(f"{type(error).__name__}: {error}"))
    return content

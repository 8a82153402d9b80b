from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engines.never_waits import never_waits
from rollout.exchange import Desk, Line, NoAnswer, RemoteFailure

DEADLINE_S = 20


class Crooked(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class Served:
    def __init__(self) -> None:
        self.begun: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}

    async def echo(self, value: Any) -> Any:
        return value

    def double(self, value: int) -> int:
        self.begun.append(value)
        return 2 * value

    async def after(self, gate: int) -> int:
        self.begun.append(gate)
        await self.gates.setdefault(gate, asyncio.Event()).wait()
        return gate

    async def open(self, gate: int) -> None:
        self.gates.setdefault(gate, asyncio.Event()).set()

    async def fail(self, error: Exception) -> None:
        raise error

    async def fail_crookedly(self) -> None:
        raise Crooked("one", "two")

    async def unsendable(self) -> object:
        return threading.Lock()


class Wire:
    """Carries messages, counts them, and can be cut."""

    def __init__(self, served: object | None = None, forget_s: float = DEADLINE_S) -> None:
        self.served = served or Served()
        self.desk = Desk(self.served, forget_s=forget_s)
        self.num_messages = 0
        self.cut = False

    def line(self, name: str = "line", deadline_s: float = DEADLINE_S) -> Line:
        async def send(message: bytes) -> bytes:
            self.num_messages += 1
            await asyncio.sleep(0)
            if self.cut:
                raise ConnectionError("the peer is gone")
            reply = asyncio.ensure_future(self.desk.exchange(name, message))
            while not reply.done():
                if self.cut:
                    raise ConnectionError("the peer is gone")
                await asyncio.sleep(0.001)
            return reply.result()

        return Line(send, deadline_s)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), DEADLINE_S))


def call(line: Line, method: str, *args: Any) -> asyncio.Future[Any]:
    return line.call(method, args, {})


def test_a_call_alone_costs_one_message():
    async def test() -> None:
        wire = Wire()
        line = wire.line()
        assert await call(line, "echo", [1, "two"]) == [1, "two"]
        assert wire.num_messages == 1
        assert not line._answers

    run(test)


def test_calls_made_together_share_a_message_and_begin_in_their_order():
    async def test() -> None:
        wire = Wire()
        line = wire.line()
        answers = await asyncio.gather(*(call(line, "double", n) for n in range(100)))
        assert answers == [2 * n for n in range(100)]
        assert wire.served.begun == list(range(100))
        assert wire.num_messages == 1

    run(test)


def test_a_call_that_waits_holds_up_no_other_and_is_answered_when_it_ends():
    async def test() -> None:
        wire = Wire()
        line = wire.line()
        slow = call(line, "after", 1)
        for n in range(5):
            assert await call(line, "double", n) == 2 * n
        assert not slow.done()
        await call(line, "open", 1)
        assert await slow == 1

    run(test)


def test_a_busy_line_sends_far_fewer_messages_than_calls():
    async def test() -> None:
        wire = Wire()
        line = wire.line()

        async def agent(number: int) -> None:
            for n in range(20):
                assert await call(line, "echo", (number, n)) == (number, n)

        await asyncio.gather(*(agent(number) for number in range(50)))
        assert wire.num_messages < 200

    run(test)


def test_what_a_call_raises_comes_back_as_itself_and_others_go_on():
    async def test() -> None:
        line = Wire().line()
        failing, fine = call(line, "fail", ValueError("too small")), call(line, "echo", 3)
        with pytest.raises(ValueError, match="too small"):
            await failing
        assert await fine == 3
        with pytest.raises(AttributeError, match="no_such_method"):
            await call(line, "no_such_method")

    run(test)


def test_what_cannot_be_carried_back_is_told_in_words():
    async def test() -> None:
        line = Wire().line()
        with pytest.raises(RemoteFailure, match="Crooked: one"):
            await call(line, "fail_crookedly")
        with pytest.raises(Exception, match="pickle"):
            await call(line, "unsendable")
        with pytest.raises(TypeError, match="pickle"):
            call(line, "echo", threading.Lock())
        assert await call(line, "echo", 1) == 1

    run(test)


def test_a_lost_peer_fails_every_call_that_waits_and_those_that_follow():
    async def test() -> None:
        wire = Wire()
        line = wire.line()
        waiting = [call(line, "after", gate) for gate in range(3)]
        await asyncio.sleep(0)
        wire.cut = True
        for answer in waiting:
            with pytest.raises(ConnectionError):
                await answer
        with pytest.raises(ConnectionError):
            await call(line, "echo", 1)
        assert not line._answers

    run(test)


def test_nothing_is_kept_for_a_line_that_waits_for_nothing():
    async def test() -> None:
        wire = Wire()
        for number in range(5):
            assert await call(wire.line(f"line-{number}"), "echo", number) == number
        assert not wire.desk._outboxes

    run(test)


def test_answers_for_a_line_that_has_gone_are_dropped_after_a_while():
    async def test() -> None:
        wire = Wire(forget_s=0.02)
        line = wire.line()
        lost = [call(line, "after", gate) for gate in (1, 2)]
        await asyncio.sleep(0.01)
        wire.cut = True
        for answer in lost:
            with pytest.raises(ConnectionError):
                await answer
        wire.cut = False
        for gate in (1, 2):
            await call(wire.line("another"), "open", gate)
        assert list(wire.desk._outboxes) == ["line"]
        while wire.desk._outboxes:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)

    run(test)


def test_a_caller_that_goes_away_takes_nobody_with_it():
    async def test() -> None:
        wire = Wire()
        line = wire.line()
        gone, stays = call(line, "after", 1), call(line, "after", 2)
        await asyncio.sleep(0.01)
        gone.cancel()
        await call(line, "open", 1)
        await call(line, "open", 2)
        assert await stays == 2

    run(test)


def test_lines_of_several_callers_get_their_own_answers():
    async def test() -> None:
        wire = Wire()
        lines = [wire.line(f"line-{n}") for n in range(4)]
        answers = await asyncio.gather(
            *(call(line, "echo", n) for n, line in enumerate(lines) for _ in range(9))
        )
        assert answers == [n for n in range(4) for _ in range(9)]

    run(test)


def test_a_call_without_an_answer_by_the_deadline_raises_and_others_go_on() -> None:
    async def play() -> None:
        line = Wire().line(deadline_s=0.05)
        late = line.call("after", (1,), {})
        with pytest.raises(NoAnswer):
            await asyncio.wait_for(late, DEADLINE_S)
        later = line.call("after", (2,), {})
        assert await line.call("echo", (3,), {}) == 3
        with pytest.raises(NoAnswer):
            await asyncio.wait_for(later, DEADLINE_S)
        await line.call("open", (1,), {})
        assert not line._answers

    asyncio.run(play())


class Hasty:
    @never_waits
    async def double(self, value: int) -> int:
        return 2 * value

    @never_waits
    async def fail(self) -> None:
        raise ValueError("no")

    @never_waits
    async def wait(self) -> None:
        await asyncio.sleep(0)


def test_a_method_that_never_waits_is_answered_without_a_task() -> None:
    async def play() -> None:
        line = Wire(Hasty()).line()
        assert await line.call("double", (4,), {}) == 8
        with pytest.raises(ValueError, match="no"):
            await line.call("fail", (), {})
        with pytest.raises(AssertionError, match="has waited"):
            await line.call("wait", (), {})

    asyncio.run(play())

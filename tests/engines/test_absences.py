"""Who does not answer: how that is found out, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest

from engines.absences import Absences
from engines.cluster_watch import ClusterWatch
from engines.errors import EngineFailed
from engines.health import Health, PartHealth
from engines.last_answers import LastAnswers


@dataclass
class Part:
    """An engine or node: there, silent, or dead."""

    silent: bool = False
    dead: bool = False
    asked: int = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def alive(self) -> int:
        self.asked += 1
        if self.dead:
            raise EngineFailed("decode-0-0 is dead")
        if self.silent:
            await self.woken.wait()
        return 1


def test_a_call_of_a_part_that_becomes_absent_ends_at_once() -> None:
    async def run() -> None:
        absences = Absences()
        call = asyncio.ensure_future(absences.unless_absent("d", asyncio.Event().wait()))
        await asyncio.sleep(0)
        absences.set(frozenset(("p",)))
        await asyncio.sleep(0)
        assert not call.done()
        absences.set(frozenset(("d",)))
        with pytest.raises(EngineFailed, match="d does not answer"):
            await asyncio.wait_for(call, 5)
        with pytest.raises(EngineFailed, match="d does not answer"):
            await absences.unless_absent("d", asyncio.sleep(0))
        absences.set(frozenset())
        assert await absences.unless_absent("d", asyncio.sleep(0, "there")) == "there"

    asyncio.run(run())


def test_a_caller_that_is_cancelled_stays_cancelled() -> None:
    async def run() -> None:
        absences = Absences()
        call = asyncio.ensure_future(absences.unless_absent("d", asyncio.Event().wait()))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(run())


@pytest.mark.parametrize("how", ["silent", "dead"])
def test_a_part_that_does_not_answer_is_absent_until_it_does(how: str) -> None:
    async def run() -> None:
        heard: asyncio.Queue[frozenset[str]] = asyncio.Queue()
        parts = {"decode-0-0": Part(), "decode-1-0": Part()}
        watch = ClusterWatch(heard.put, period_s=0.01, deadline_s=0.1, restart_after_s=0.0)
        for name, part in parts.items():
            watch.add(name, part)
        victim = parts["decode-0-0"]
        setattr(victim, how, True)
        assert await asyncio.wait_for(heard.get(), 10) == {"decode-0-0"}
        setattr(victim, how, False)
        assert await asyncio.wait_for(heard.get(), 10) == frozenset()
        watch.close()

    asyncio.run(run())


def test_one_question_without_an_answer_accuses_nobody() -> None:
    async def run() -> None:
        heard: list[frozenset[str]] = []

        async def hear(absent: frozenset[str]) -> None:
            heard.append(absent)

        part = Part(silent=True)
        watch = ClusterWatch(hear, period_s=0.001, deadline_s=0.4, restart_after_s=0.0)
        watch.add("p", part)
        async with asyncio.timeout(10):
            while part.asked < 2:  # noqa: ASYNC110 - the part counts
                await asyncio.sleep(0.01)
            part.silent = False
            part.woken.set()
            while part.asked < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert heard == []
        watch.close()

    asyncio.run(run())


def test_a_part_whose_process_is_gone_is_brought_back_and_one_that_cannot_be_is_tried_again() -> None:
    async def run() -> None:
        part, tries, now_s = Part(dead=True), itertools.count(1), 0.0
        heard: asyncio.Queue[frozenset[str]] = asyncio.Queue()
        watch = ClusterWatch(
            heard.put, period_s=0.001, deadline_s=60.0, restart_after_s=0.0, clock=lambda: now_s
        )

        async def bring_back(health: PartHealth) -> None:
            if next(tries) == 1:
                raise OSError("no room")
            health.started()
            part.dead = False

        watch.add("p", part, bring_back)
        assert await asyncio.wait_for(heard.get(), 10) == {"p"}
        assert watch.ailing == {"p": Health.DEAD}
        now_s = 2.0
        async with asyncio.timeout(10):
            while "no room" not in watch.health("p").why:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.001)
        now_s = 4.0
        assert await asyncio.wait_for(heard.get(), 10) == frozenset()
        assert watch.figures() == {
            "healthy": 1.0,
            "suspect": 0.0,
            "dead": 0.0,
            "restarting": 0.0,
            "stale": 0.0,
            "restarts": 1.0,
        }
        watch.close()

    asyncio.run(run())


def test_a_part_that_answers_no_more_counts_with_what_it_said_last() -> None:
    async def run() -> None:
        node, other, figures = Part(), Part(dead=True), LastAnswers()
        parts = {"n": node, "o": other}
        assert await figures.ask(parts, "alive") == {"n": 1}
        node.dead = True
        assert await figures.ask(parts, "alive") == {"n": 1}

    asyncio.run(run())

"""Figures of parts that may be dead, silent or asked by two at once."""

from __future__ import annotations

import asyncio

import pytest

from engines.errors import EngineFailed
from engines.last_answers import LastAnswers


class Part:
    """Answers when it is let go, with how often it was asked."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def figure(self) -> int:
        self.num_asked += 1
        answer = self.num_asked
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return answer


def test_two_who_ask_at_once_share_the_answer() -> None:
    async def play() -> None:
        part, answers = Part(), LastAnswers()
        asking = [asyncio.create_task(answers.ask({"node": part}, "figure")) for _ in range(2)]
        await asyncio.sleep(0)
        part.may_answer.set()
        assert await asyncio.gather(*asking) == [{"node": 1}, {"node": 1}]
        assert await answers.ask({"node": part}, "figure") == {"node": 2}

    asyncio.run(play())


def test_a_silent_part_is_waited_for_once_and_left_out_until_it_has_answered() -> None:
    async def play() -> None:
        part, answers = Part(), LastAnswers(patience_s=0.05)
        for _ in range(3):
            assert await answers.ask({"node": part}, "figure") == {}
        assert part.num_asked == 1
        part.may_answer.set()
        for _ in range(4):  # the answer needs a few turns of the loop
            await asyncio.sleep(0)
        assert await answers.ask({"node": part}, "figure") == {"node": 2}

    asyncio.run(play())


def test_a_dead_part_is_told_as_it_was_last() -> None:
    async def play() -> None:
        part, answers = Part(), LastAnswers()
        part.may_answer.set()
        assert await answers.ask({"node": part}, "figure") == {"node": 1}
        part.error = EngineFailed("dead")
        assert await answers.ask({"node": part}, "figure") == {"node": 1}
        part.error = ValueError("a fault of ours")
        with pytest.raises(ValueError, match="ours"):
            await answers.ask({"node": part}, "figure")

    asyncio.run(play())

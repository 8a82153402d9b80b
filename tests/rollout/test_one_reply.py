"""A conversation that is answered once and judged elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from rollout.environment import Message, Opening, Step
from rollout.one_reply import OneReply
from rollout.tasks import Task, TaskFileError


def task(**details: object) -> Task:
    return Task("t", "Why?", "", "one_reply", details)


def test_a_prompt_is_asked_and_its_answer_ends_the_task() -> None:
    environment = OneReply(task())
    assert asyncio.run(environment.reset()) == Opening((Message("user", "Why?"),))
    assert asyncio.run(environment.step("Because.")) == Step(reply=None, reward=0.0, done=True)


def test_a_whole_conversation_opens_the_task() -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    opening = asyncio.run(OneReply(task(messages=said)).reset())
    assert opening.messages == (Message("system", "Be brief."), Message("user", "Why?"))


@pytest.mark.parametrize("messages", [["Why?"], [{"role": "user"}], 3])
def test_what_is_no_conversation_is_told(messages: object) -> None:
    with pytest.raises(TaskFileError, match='"messages" of task t must be objects with "role"'):
        asyncio.run(OneReply(task(messages=messages)).reset())

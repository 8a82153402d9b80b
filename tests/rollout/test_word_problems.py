"""Problems in words: what the environment says to each reply, and what it pays for."""

from __future__ import annotations

import asyncio

import pytest

from rollout.environment import Message, Step
from rollout.tasks import Task, bundled_tasks_path, load_tasks
from rollout.word_problems import DEMONSTRATIONS, MAX_MISTAKES, WordProblem, is_same_answer

TASK = Task("t", "Ann has 5 bags of 24 eggs and finds 8 more. What is 5 times 24, plus 8?", "128")
MISTAKE = "ERROR: reply CALC(expression) or ANSWER(number)"


def say(environment: WordProblem, text: str) -> Step:
    return asyncio.run(environment.step(text))


def test_the_calculator_answers_and_the_right_answer_earns_the_reward() -> None:
    environment = WordProblem(TASK)
    assert say(environment, "CALC(5*24)") == Step("RESULT: 120", 0.0, done=False, tool_calls=1)
    assert say(environment, " CALC( 120 + 8 )\n") == Step("RESULT: 128", 0.0, done=False, tool_calls=1)
    assert say(environment, "ANSWER(128)") == Step(None, 1.0, done=True)


def test_a_wrong_answer_ends_it_without_reward() -> None:
    assert say(WordProblem(TASK), "ANSWER(120)") == Step(None, 0.0, done=True)


@pytest.mark.parametrize(
    "text", ["", "128", "CALC()", "CALC(5*24", "CALC(5)*24", "calc(5*24)", "I think CALC(5*24)", "ANSWER()"]
)
def test_a_reply_that_is_neither_is_told_so(text: str) -> None:
    assert say(WordProblem(TASK), text) == Step(MISTAKE, 0.0, done=False)


def test_what_the_calculator_refuses_is_told_and_counts_as_a_mistake() -> None:
    environment = WordProblem(TASK)
    refused = Step("ERROR: division by zero", 0.0, done=False, tool_calls=1)
    assert [say(environment, "CALC(5/0)") for _ in range(2)] == [refused, refused]
    assert say(environment, "?") == Step(None, 0.0, done=True)


def test_so_many_mistakes_in_a_row_end_it_and_a_good_call_forgives_them() -> None:
    environment = WordProblem(TASK)
    for text in ["?"] * (MAX_MISTAKES - 1) + ["CALC(1+1)"] + ["?"] * (MAX_MISTAKES - 1):
        assert not say(environment, text).done
    assert say(environment, "?") == Step(None, 0.0, done=True)


def test_a_reset_environment_counts_mistakes_anew() -> None:
    environment = WordProblem(TASK)
    say(environment, "?")
    asyncio.run(environment.reset())
    assert [say(environment, "?").done for _ in range(MAX_MISTAKES)] == [False, False, True]


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("128", "128", True),
        (" 128.0 ", "128", True),
        ("$1,200", "1200", True),
        ("-3", "-3.00", True),
        ("0.5", ".5", True),
        ("128.5", "128", False),
        ("12 8", "128", False),
        ("number", "128", False),
        ("100+28", "128", False),
        ("Paris", "paris", True),
        ("9" * 400, "128", False),
        ("1e2", "100", False),
    ],
)
def test_answers_are_compared_as_numbers_and_else_as_text(given: str, expected: str, same: bool) -> None:
    assert is_same_answer(given, expected) is same


def test_the_opening_is_a_system_prompt_then_demonstrations_then_the_problem() -> None:
    opening = asyncio.run(WordProblem(TASK).reset()).messages
    assert [message.role for message in opening[:3]] == ["system", "user", "assistant"]
    assert opening[-1] == Message("user", TASK.prompt)
    spoken = opening[1:]
    assert [message.role for message in spoken] == ["user", "assistant"] * (len(spoken) // 2) + ["user"]


def test_every_demonstration_plays_as_it_is_written_and_one_uses_the_calculator_twice() -> None:
    calls = []
    for problem, *rest in DEMONSTRATIONS:
        environment = WordProblem(Task("t", problem, rest[-1][len("ANSWER(") : -1]))
        for said, heard in zip(rest[:-1:2], rest[1::2], strict=True):
            assert say(environment, said).reply == heard
        assert say(environment, rest[-1]).reward == 1.0
        calls.append(sum(said.startswith("CALC") for said in rest))
    assert len(calls) == 3
    assert max(calls) >= 2


def test_the_opening_of_every_bundled_problem_stays_short() -> None:
    # About 4 characters a token, and 5 tokens around each message.
    for task in load_tasks(bundled_tasks_path()):
        opening = asyncio.run(WordProblem(task).reset())
        assert sum(5 + len(message.content) / 4 for message in opening.messages) < 350

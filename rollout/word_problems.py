"""Arithmetic problems in words, solved with the calculator tool.

The model replies CALC(expression), is told RESULT: value, and in the end replies ANSWER(value). The
opening shows it how: a small model only uses the tool after a few worked examples. The examples are
kept short, for every trajectory carries them.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rollout.calculator import calculator
from rollout.environment import Message, Opening, Step, ToolError
from rollout.tasks import Task
from rollout.workbench import Workbench

MAX_MISTAKES = 3
"""So many bad replies in a row end the task with reward 0."""

SYSTEM = (
    "Solve the problem with a calculator. Reply CALC(expression) to compute. "
    "When you know the result, reply ANSWER(number)."
)
DEMONSTRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "What is 45 plus 18, times 4?",
        "CALC(45+18)",
        "RESULT: 63",
        "CALC(63*4)",
        "RESULT: 252",
        "ANSWER(252)",
    ),
    (
        "Max has 45 pens, finds 18 and loses 20. What is 45 plus 18, minus 20?",
        "CALC(45+18-20)",
        "RESULT: 43",
        "ANSWER(43)",
    ),
    (
        "Tom has 7 boxes of 12 nuts and finds 6 more. What is 7 times 12, plus 6?",
        "CALC(7*12+6)",
        "RESULT: 90",
        "ANSWER(90)",
    ),
)
"""Each begins with a problem; then the model and the environment speak in turn."""

_CALL = re.compile(r"CALC\((.+)\)")
_ANSWER = re.compile(r"ANSWER\((.+)\)")
_HELP = "ERROR: reply CALC(expression) or ANSWER(number)"


class WordProblem:
    """Environment of one problem."""

    def __init__(self, task: Task, workbench: Workbench | None = None) -> None:
        """It needs nothing of the workbench."""
        self._task = task
        self._mistakes = 0

    async def reset(self) -> Opening:
        self._mistakes = 0
        messages = [Message("system", SYSTEM)]
        for demonstration in DEMONSTRATIONS:
            for place, content in enumerate(demonstration):
                messages.append(Message("assistant" if place % 2 else "user", content))
        return Opening((*messages, Message("user", self._task.prompt)))

    async def step(self, text: str) -> Step:
        reply = text.strip()
        if answer := _ANSWER.fullmatch(reply):
            right = is_same_answer(answer[1], self._task.answer)
            return Step(reply=None, reward=float(right), done=True)
        call = _CALL.fullmatch(reply)
        if call is None:
            return self._mistake(_HELP, tool_calls=0)
        try:
            value = calculator(call[1])
        except ToolError as error:
            return self._mistake(f"ERROR: {error}", tool_calls=1)
        self._mistakes = 0
        return Step(reply=f"RESULT: {value}", reward=0.0, done=False, tool_calls=1)

    async def close(self) -> None:
        """It holds nothing."""

    def _mistake(self, message: str, tool_calls: int) -> Step:
        self._mistakes += 1
        if self._mistakes == MAX_MISTAKES:
            return Step(reply=None, reward=0.0, done=True, tool_calls=tool_calls)
        return Step(reply=message, reward=0.0, done=False, tool_calls=tool_calls)


def is_same_answer(given: str, expected: str) -> bool:
    """Equal as numbers (a dollar sign and thousands commas do not matter), else as text."""
    given_number, expected_number = _number(given), _number(expected)
    if given_number is None or expected_number is None:
        return given.strip().casefold() == expected.strip().casefold()
    return given_number == expected_number


def _number(text: str) -> Fraction | None:
    plain = text.strip().removeprefix("$").replace(",", "")
    if not re.fullmatch(r"-?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})", plain):
        return None
    return Fraction(plain)

"""The smallest task that needs a tool: expressions worked out one operation at a time.

Every character is a token, so a model of well under a million parameters can learn it. The calculator
takes one binary operation a call, so k operators need k calls:

    opening      Q23*47-5+8?        evaluated from left to right
    model        C23*47;            environment  R1081;
    model        C1081-5;           environment  R1076;
    model        C1076+8;           environment  R1084;
    model        A1084;             done, reward 1

`;` ends every turn of the model. Anything else it writes ends the task with reward 0.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from rollout.environment import Message, Opening, Step
from rollout.tasks import Task
from rollout.workbench import Workbench

ALPHABET = "_QCRA;?0123456789+-*#"
"""Token id = place in this string. `_` pads; `#` may stand for the end of a text."""
TURN_END = ";"
MAX_CALLS = 12
MAX_VALUE = 10**7 - 1

_CALL = re.compile(r"C(\d{1,7})([*+-])(\d{1,7})")
_ANSWER = re.compile(r"A(\d{1,7})")
_FAILED = Step(reply=None, reward=0.0, done=True)


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One operation and its value."""

    left: int
    operator: str
    right: int
    value: int


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """An expression, the steps that work it out, and its value."""

    expression: str
    steps: tuple[ChainStep, ...]
    value: int


class ChainArithmetic:
    """Environment of one such expression."""

    def __init__(self, task: Task, workbench: Workbench | None = None) -> None:
        """It needs nothing of the workbench."""
        self._task = task
        self._num_calls = 0

    async def reset(self) -> Opening:
        self._num_calls = 0
        return Opening((Message(role="user", content=self._task.prompt),))

    async def step(self, text: str) -> Step:
        body = text.removesuffix(TURN_END)
        if answer := _ANSWER.fullmatch(body):
            right = int(answer[1]) == int(self._task.answer)
            return Step(reply=None, reward=float(right), done=True)
        call = _CALL.fullmatch(body)
        if call is None or self._num_calls == MAX_CALLS:
            return _FAILED
        value = _operate(int(call[1]), call[2], int(call[3]))
        if not 0 <= value <= MAX_VALUE:
            return _FAILED
        self._num_calls += 1
        return Step(reply=f"R{value}{TURN_END}", reward=0.0, done=False, tool_calls=1)

    async def close(self) -> None:
        """It holds nothing."""


def sample_problem(rng: random.Random, min_operators: int, max_operators: int) -> ChainProblem:
    """Numbers of 2 to 99; only the first operator may be `*`; no value is negative."""
    value = rng.randint(2, 99)
    expression, steps = str(value), []
    for place in range(rng.randint(min_operators, max_operators)):
        operator, right = rng.choice("+-*" if place == 0 else "+-"), rng.randint(2, 99)
        if operator == "-" and right > value:
            operator = "+"
        step = ChainStep(value, operator, right, _operate(value, operator, right))
        expression += f"{operator}{right}"
        steps.append(step)
        value = step.value
    return ChainProblem(expression, tuple(steps), value)


def demonstration(problem: ChainProblem, use_tool: bool) -> list[tuple[str, bool]]:
    """A transcript as (text, did the model write it), the question first.

    Without the tool the model gives up: it answers 0 at once.
    """
    parts = [(f"Q{problem.expression}?", False)]
    if not use_tool:
        return [*parts, (f"A0{TURN_END}", True)]
    for step in problem.steps:
        parts.append((f"C{step.left}{step.operator}{step.right}{TURN_END}", True))
        parts.append((f"R{step.value}{TURN_END}", False))
    return [*parts, (f"A{problem.value}{TURN_END}", True)]


def make_tasks(seed: int, num_tasks: int, min_operators: int = 1, max_operators: int = 3) -> list[Task]:
    """Problems for training or for judging: another seed, other problems."""
    rng = random.Random(seed)
    tasks = []
    for number in range(num_tasks):
        problem = sample_problem(rng, min_operators, max_operators)
        tasks.append(
            Task(
                task_id=f"chain-{seed}-{number:05d}",
                prompt=f"Q{problem.expression}?",
                answer=str(problem.value),
                environment="chain_arithmetic",
            )
        )
    return tasks


def _operate(left: int, operator: str, right: int) -> int:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case _:
            return left * right

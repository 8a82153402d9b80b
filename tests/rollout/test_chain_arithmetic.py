"""The tiny task: its rules, its problems, and that a demonstration plays it to reward 1."""

from __future__ import annotations

import asyncio
import random

import pytest

from rollout.chain_arithmetic import (
    ALPHABET,
    MAX_CALLS,
    ChainArithmetic,
    ChainProblem,
    demonstration,
    make_tasks,
    sample_problem,
)
from rollout.environment import Message, Opening, Step
from rollout.environments import environment_class
from rollout.tasks import Task

TASK = Task("t", "Q23*47-5+8?", "1084", "chain_arithmetic")
FAILED = Step(reply=None, reward=0.0, done=True)


def say(environment: ChainArithmetic, text: str) -> Step:
    return asyncio.run(environment.step(text))


def test_each_call_is_one_operation_and_the_right_answer_earns_the_reward() -> None:
    environment = ChainArithmetic(TASK)
    assert asyncio.run(environment.reset()) == Opening((Message("user", "Q23*47-5+8?"),))
    assert say(environment, "C23*47;") == Step("R1081;", 0.0, done=False, tool_calls=1)
    assert say(environment, "C1081-5;") == Step("R1076;", 0.0, done=False, tool_calls=1)
    assert say(environment, "C1076+8") == Step("R1084;", 0.0, done=False, tool_calls=1)
    assert say(environment, "A1084;") == Step(None, 1.0, done=True)


def test_a_wrong_answer_ends_it_without_reward() -> None:
    assert say(ChainArithmetic(TASK), "A0;") == FAILED


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";",
        "C23*47-5;",
        "C5-9;",
        "C9999999*2;",
        "C99999999+1;",
        "CC1+1;",
        "R5;",
        "A;",
        "A1084;;",
        "C1+1\n",
    ],
)
def test_anything_else_ends_it_without_reward(text: str) -> None:
    assert say(ChainArithmetic(TASK), text) == FAILED


def test_the_thirteenth_call_ends_it() -> None:
    environment = ChainArithmetic(TASK)
    steps = [say(environment, "C1+1;") for _ in range(MAX_CALLS + 1)]
    assert [step.done for step in steps] == [False] * MAX_CALLS + [True]
    assert steps[-1] == FAILED


def test_a_reset_environment_counts_its_calls_anew() -> None:
    environment = ChainArithmetic(TASK)
    for _ in range(MAX_CALLS):
        say(environment, "C1+1;")
    asyncio.run(environment.reset())
    assert not say(environment, "C1+1;").done


def problems(num_problems: int) -> list[ChainProblem]:
    rng = random.Random(5)
    return [sample_problem(rng, 1, 4) for _ in range(num_problems)]


def test_steps_work_the_expression_out_from_left_to_right() -> None:
    for problem in problems(300):
        first = problem.steps[0]
        assert 1 <= len(problem.steps) <= 4
        written = str(first.left) + "".join(f"{step.operator}{step.right}" for step in problem.steps)
        assert problem.expression == written
        # Only the first operator may be *, so Python's precedence is left to right too.
        assert problem.value == eval(problem.expression)
        assert all(step.value >= 0 for step in problem.steps)


def test_a_demonstration_with_the_tool_earns_the_reward() -> None:
    for problem in problems(50):
        environment = ChainArithmetic(Task("t", "?", str(problem.value)))
        (question, by_model), *turns = demonstration(problem, use_tool=True)
        assert (question, by_model) == (f"Q{problem.expression}?", False)
        assert [by_model for _, by_model in turns] == [True, False] * len(problem.steps) + [True]
        for (said, _), (heard, _) in zip(turns[::2], turns[1::2], strict=False):
            assert say(environment, said).reply == heard
        assert say(environment, turns[-1][0]).reward == 1.0


def test_a_demonstration_without_the_tool_gives_up() -> None:
    problem = problems(1)[0]
    assert demonstration(problem, use_tool=False) == [(f"Q{problem.expression}?", False), ("A0;", True)]


def test_all_that_is_written_is_in_the_alphabet() -> None:
    written = "".join(text for p in problems(100) for text, _ in demonstration(p, use_tool=True))
    assert set(written) <= set(ALPHABET)
    assert len(set(ALPHABET)) == len(ALPHABET)
    assert ALPHABET[0] == "_"
    assert ALPHABET[-1] == "#"


def test_made_tasks_depend_on_the_seed_alone_and_can_be_played() -> None:
    tasks = make_tasks(seed=3, num_tasks=40)
    assert tasks == make_tasks(seed=3, num_tasks=40)
    assert {task.prompt for task in tasks} != {task.prompt for task in make_tasks(4, 40)}
    assert len({task.task_id for task in tasks}) == 40
    assert environment_class(tasks[0].environment) is ChainArithmetic
    assert all(task.prompt[1:-1] and eval(task.prompt[1:-1]) == int(task.answer) for task in tasks)

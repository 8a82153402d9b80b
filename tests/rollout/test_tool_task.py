"""A task with tools: calls are answered, bad ones told and limited, an answer is judged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from rollout.compose import load_config
from rollout.environment import Environment, Message, Opening, Step, ToolError
from rollout.environments import UnknownEnvironment, environment_class, make_environment, needs_sandbox
from rollout.tasks import ENVIRONMENTS, Task, TaskFileError
from rollout.tool_task import ToolTask
from rollout.tools.runner import ToolRunner
from rollout.workbench import Workbench
from tests.rollout.sandbox.limits import UNSAFE

WORKBENCH = Workbench(ToolRunner(load_config().tools), UNSAFE)


class Cellar(ToolTask):
    """Wine is counted by calling; the answer is how much there is."""

    system = "You keep the cellar."

    def __init__(self, task: Task, workbench: Workbench) -> None:
        super().__init__(task, workbench)
        self.bottles = {"red": 3}

    def tools(self) -> Sequence[Callable[..., object]]:
        return [self.count, self.drink]

    def count(self, wine: str) -> int:
        """Count the bottles of a wine."""
        if wine not in self.bottles:
            raise ToolError(f"there is no {wine}")
        return self.bottles[wine]

    async def drink(self, wine: str) -> str:
        """Drink a bottle."""
        self.bottles[wine] -= 1
        return "cheers"

    async def reward(self, answer: str) -> float:
        return float(answer == str(self.bottles["red"]))


def cellar() -> Cellar:
    return Cellar(Task("t", "How much red is left?", ""), Workbench(ToolRunner(load_config().tools), UNSAFE))


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def say(environment: Environment, *texts: str) -> list[Step]:
    async def play() -> list[Step]:
        try:
            return [await environment.step(text) for text in texts]
        finally:
            await environment.close()

    return asyncio.run(play())


def told(step: Step) -> list[str]:
    assert isinstance(step.reply, tuple)
    assert {message.role for message in step.reply} == {"tool"}
    return [message.content for message in step.reply]


def test_the_opening_has_the_system_message_the_question_and_the_tools() -> None:
    opening = asyncio.run(cellar().reset())
    assert isinstance(opening, Opening)
    assert opening.messages == (
        Message("system", "You keep the cellar."),
        Message("user", "How much red is left?"),
    )
    assert [tool["function"]["name"] for tool in opening.tools] == ["count", "drink"]


def test_calls_are_run_in_order_and_each_is_answered() -> None:
    first, last = say(cellar(), "Well." + call("drink", wine="red") + call("count", wine="red"), "2")
    assert told(first) == ["cheers", "2"]
    assert (first.tool_calls, first.done) == (2, False)
    assert last == Step(reply=None, reward=1.0, done=True)


def test_what_a_tool_raises_is_told_and_the_trajectory_goes_on() -> None:
    steps = say(cellar(), call("count", wine="white"), call("drink", wine="white"), "3")
    assert [told(step) for step in steps[:2]] == [
        ["ERROR: there is no white"],
        ["ERROR: drink failed: KeyError: 'white'"],
    ]
    assert steps[2].reward == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<tool_call>count the red</tool_call>", "not JSON"),
        (call("steal", wine="red"), "there is no tool 'steal'; there are: count, drink"),
        (call("count"), "bad arguments for count: wine: Field required"),
    ],
)
def test_a_malformed_call_is_told_counted_and_limited(text: str, words: str) -> None:
    environment = cellar()
    steps = say(environment, text, text, call("count", wine="white"), text, text, text)
    assert words in told(steps[0])[0]
    assert [step.done for step in steps] == [False] * 5 + [True]
    assert steps[-1].reward == 0.0
    assert environment._runner.report().malformed_calls == 5


def test_reasoning_is_no_part_of_the_answer() -> None:
    (step,) = say(cellar(), f"<think>I could {call('drink', wine='red')}</think>\n3\n")
    assert step.reward == 1.0


def test_a_question_of_a_task_file_names_its_tools_and_its_answer_is_judged() -> None:
    task = Task("t", "6*7?", "42", "tool_use", {"tools": ["calculator", "python"]})
    assert needs_sandbox(task)
    assert not needs_sandbox(replace(task, details={}))
    environment = make_environment(task, WORKBENCH)
    steps = say(
        environment,
        call("calculator", expression="6*7") + call("python", code="print(6 * 7)"),
        "It is six by seven.\nAnswer: 42",
    )
    assert told(steps[0]) == ["42", "42"]
    assert steps[1].reward == 1.0
    with pytest.raises(TaskFileError, match="must be a list of calculator, python, bash, edit"):
        make_environment(replace(task, details={"tools": ["axe"]}), WORKBENCH)


def test_every_bundled_environment_has_a_class_and_so_may_a_user() -> None:
    for name in ENVIRONMENTS:
        if name != "skyrl_gym":  # an optional package
            assert callable(environment_class(name))
    own = environment_class("tests.rollout.test_tool_task:Cellar")
    assert own.__name__ == "Cellar"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chess", "'chess' is unknown; known ones: word_problems"),
        ("no.such.module:Game", "cannot be imported: No module named"),
        ("rollout.tasks:Game", "cannot be imported: module 'rollout.tasks' has no attribute 'Game'"),
    ],
)
def test_an_environment_that_is_not_there_is_named_in_one_line(name: str, words: str) -> None:
    with pytest.raises(UnknownEnvironment, match=words):
        environment_class(name)

"""Environments of the released skyrl-gym package, played through the adapter."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import pytest

from rollout.compose import load_config
from rollout.environment import Message, Step
from rollout.environments import make_environment, needs_sandbox
from rollout.tasks import Task, TaskFileError
from rollout.tools.runner import ToolRunner
from rollout.workbench import Workbench
from tests.rollout.sandbox.limits import UNSAFE

pytest.importorskip("skyrl_gym", reason="skyrl-gym is not installed (pip install 'dualpath-rollout[skyrl]')")


base_text_env = import_module("skyrl_gym.envs.base_text_env")


class Guess(base_text_env.BaseTextEnv):  # type: ignore[misc, name-defined]
    """A number, guessed with hints; as a user of skyrl-gym would write it."""

    closed = 0

    def __init__(self, env_config: Any = None, extras: Any = None) -> None:
        super().__init__()
        self.number = extras["reward_spec"]["ground_truth"] + env_config.get("offset", 0)

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        return [{"role": "system", "content": "Guess."}, *prompt], {}

    def step(self, action: str) -> dict[str, Any]:
        if int(action) == self.number:
            return {"observations": [], "reward": 1.0, "done": True, "metadata": {}}
        hint = "more" if int(action) < self.number else "less"
        told = [{"role": "user", "content": hint}]
        return {"observations": told, "reward": -0.5, "done": False, "metadata": {}}

    def close(self) -> None:
        Guess.closed += 1


def play(task: Task, *texts: str) -> tuple[tuple[Message, ...], list[Step]]:
    async def act() -> tuple[tuple[Message, ...], list[Step]]:
        environment = make_environment(task, Workbench(ToolRunner(load_config().tools), UNSAFE))
        opening = await environment.reset()
        steps = [await environment.step(text) for text in texts]
        await environment.close()
        return opening.messages, steps

    return asyncio.run(act())


def task_of(env_class: str, prompt: str = "?", **details: object) -> Task:
    return Task("t", prompt, "", "skyrl_gym", {"env_class": env_class, **details})


@pytest.mark.parametrize(("text", "reward"), [("So it is\n#### 72", 1.0), ("#### 71", 0.0)])
def test_a_bundled_environment_judges_an_answer(text: str, reward: float) -> None:
    task = task_of("gsm8k", "How many?", reward_spec={"ground_truth": "72"})
    opening, steps = play(task, text)
    assert opening == (Message("user", "How many?"),)
    assert steps == [Step(reply=None, reward=reward, done=True)]


def test_an_environment_of_several_turns_goes_on_until_it_says_done() -> None:
    task = task_of("gsm8k_multi_turn", reward_spec={"ground_truth": "72"}, max_turns=2)
    _, steps = play(task, "#### 1", "#### 72")
    assert [step.done for step in steps] == [False, True]
    assert isinstance(steps[0].reply, tuple)
    assert steps[0].reply[0].role == "user"
    assert steps[1].reward == 1.0


def test_a_users_own_environment_gets_its_config_and_is_closed() -> None:
    own = f"{__name__}:Guess"
    task = task_of(own, reward_spec={"ground_truth": 40}, env_config={"offset": 2})
    closed = Guess.closed
    opening, steps = play(task, "50", "42")
    assert opening == (Message("system", "Guess."), Message("user", "?"))
    assert steps == [
        Step(reply=(Message("user", "less"),), reward=-0.5, done=False),
        Step(reply=None, reward=1.0, done=True),
    ]
    assert Guess.closed == closed + 1


def test_an_environment_that_is_not_registered_is_named_with_those_that_are() -> None:
    assert not needs_sandbox(task_of("gsm8k"))
    with pytest.raises(TaskFileError, match=r"must be one of aime, gsm8k, .*, or module:Class, got 'chess'"):
        needs_sandbox(task_of("chess"))

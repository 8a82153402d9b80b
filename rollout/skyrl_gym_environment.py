"""An environment of skyrl-gym, played here: its `init`, `step` and `close` behind our Environment.

A task's line names it and brings what SkyRL's data sets bring: `{"prompt": "...", "environment":
"skyrl_gym", "env_class": "gsm8k", "reward_spec": {"ground_truth": "72"}}`. `env_class` may also be your
own, as `module:Class`. All keys but the prompt are the environment's `extras`.

History stays as it was sampled: an environment that answers with a `postprocessed_action` is judged by what
it says of it, but the model's own words stand. Give such an environment's end marks as
sampling.stop_strings.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import skyrl_gym
from skyrl_gym.envs.registration import EnvSpec

from rollout.environment import Message, Opening, Step
from rollout.own_thread import in_own_thread
from rollout.tasks import Task, TaskFileError
from rollout.workbench import Workbench


class SkyRLGymTask:
    """One trajectory of such an environment. Its code may block, so each of its methods runs in a thread."""

    def __init__(self, task: Task, workbench: Workbench) -> None:
        self._task = task
        self._environment: Any = None

    @staticmethod
    def needs_sandbox(task: Task) -> bool:
        """It brings its own tools, which we neither know nor hold; what its line names must be there."""
        _spec(task)
        return False

    async def reset(self) -> Opening:
        asked = [{"role": "user", "content": self._task.prompt}]
        self._environment = await in_own_thread(self._make)
        messages, _ = await in_own_thread(partial(self._environment.init, asked))
        return Opening(_messages(messages))

    async def step(self, text: str) -> Step:
        told = await in_own_thread(partial(self._environment.step, text))
        reply = None if told["done"] else _messages(told["observations"]) or ""
        return Step(reply=reply, reward=float(told["reward"]), done=bool(told["done"]))

    async def close(self) -> None:
        if self._environment is not None:
            await in_own_thread(self._environment.close)

    def _make(self) -> Any:
        extras = {key: value for key, value in self._task.details.items() if key != "env_config"}
        env_config = self._task.details.get("env_config", {})
        return skyrl_gym.make(_spec(self._task), env_config=env_config, extras=extras)


def _spec(task: Task) -> EnvSpec:
    """Of a registered environment, or of the class that the line names."""
    named = task.details.get("env_class")
    if isinstance(named, str) and ":" in named:
        return EnvSpec(named, named)
    if named not in skyrl_gym.registry:
        known = ", ".join(sorted(skyrl_gym.registry))
        raise TaskFileError(
            f'"env_class" of task {task.task_id} must be one of {known}, or module:Class, got {named!r}'
        )
    return skyrl_gym.registry[named]


def _messages(conversation: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(message["role"], message["content"]) for message in conversation)

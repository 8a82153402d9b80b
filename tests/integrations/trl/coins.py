"""A multi-turn tool task that a random model can learn: each reply goes to a tool, which counts digits."""

from __future__ import annotations

from rollout.environment import Message, Opening, Step
from rollout.tasks import Task
from rollout.workbench import Workbench

NUM_CALLS = 2


class Coins:
    """Two calls of the tool; the reward is the share of digits in what the model said."""

    def __init__(self, task: Task, workbench: Workbench) -> None:
        self._task = task
        self._said: list[str] = []

    async def reset(self) -> Opening:
        return Opening((Message("user", self._task.prompt),))

    async def step(self, text: str) -> Step:
        self._said.append(text)
        if len(self._said) < NUM_CALLS:
            return Step(reply=f"R{count_digits(text)};", reward=0.0, done=False, tool_calls=1)
        said = "".join(self._said)
        return Step(reply=None, reward=count_digits(said) / max(len(said), 1), done=True, tool_calls=1)

    async def close(self) -> None:
        """It holds nothing."""


def count_digits(text: str) -> int:
    return sum(character.isdigit() for character in text)

"""An environment that only talks: so many turns with any model, with a tool that hangs now and then.

What it answers depends on the task and the number of the turn alone, so a resumed trajectory hears the same.
"""

from __future__ import annotations

import asyncio
import random

from rollout.chain_arithmetic import ALPHABET
from rollout.environment import Message, Opening, Step
from rollout.tasks import Task
from rollout.workbench import Workbench

_LETTERS = "".join(char for char in ALPHABET if char.isdigit())
_REPLY_TOKENS = 12
_FOR_EVER_S = 3600.0


class Talk:
    """One trajectory. The task's `details`: `turns`, `wait_s` before each answer, `hangs_at` a turn or 0."""

    def __init__(self, task: Task, workbench: Workbench) -> None:
        self._task = task
        self._random = random.Random(task.task_id)
        self._num_turns = 0

    async def reset(self) -> Opening:
        return Opening((Message("user", self._task.prompt),))

    async def step(self, text: str) -> Step:
        self._num_turns += 1
        details = self._task.details
        await asyncio.sleep(details["wait_s"])
        if self._num_turns == details["hangs_at"]:
            await asyncio.sleep(_FOR_EVER_S)
        if self._num_turns >= details["turns"]:
            return Step(reply=None, reward=1.0, done=True)
        return Step(reply="".join(self._random.choices(_LETTERS, k=_REPLY_TOKENS)), reward=0.0, done=False)

    async def close(self) -> None:
        pass


def talk_tasks(seed: int, step: int, num_tasks: int, *, wait_s: float, hang_share: float) -> list[Task]:
    """Tasks of one step; no two steps have one in common."""
    rng = random.Random(f"{seed}/{step}")
    tasks = []
    for number in range(num_tasks):
        turns = rng.randint(2, 6)
        hangs = rng.random() < hang_share
        tasks.append(
            Task(
                task_id=f"talk-{step}-{number}",
                prompt="".join(rng.choices(_LETTERS, k=rng.randint(20, 60))),
                answer="",
                environment="rollout.chaos.environment:Talk",
                details={"turns": turns, "wait_s": wait_s, "hangs_at": rng.randint(1, turns) if hangs else 0},
            )
        )
    return tasks

"""A conversation that the model answers once; what the answer is worth is for whoever asked to say.

So a trainer whose reward functions judge texts needs no environment of its own. A line has a `prompt`, or
`messages`, each an object with `role` and `content`, which then are the conversation.
"""

from __future__ import annotations

from rollout.environment import Message, Opening, Step
from rollout.tasks import Task, TaskFileError
from rollout.workbench import Workbench


class OneReply:
    """One such reply; its reward is 0."""

    def __init__(self, task: Task, workbench: Workbench | None = None) -> None:
        """It needs nothing of the workbench."""
        self._task = task

    async def reset(self) -> Opening:
        messages = self._task.details.get("messages", [{"role": "user", "content": self._task.prompt}])
        try:
            return Opening(tuple(Message(str(m["role"]), str(m["content"])) for m in messages))
        except (KeyError, TypeError):
            raise TaskFileError(
                f'"messages" of task {self._task.task_id} must be objects with "role" and "content", '
                f"got {messages!r:.80}"
            ) from None

    async def step(self, text: str) -> Step:
        return Step(reply=None, reward=0.0, done=True)

    async def close(self) -> None:
        """It holds nothing."""

"""Questions with tools: `{"prompt", "answer", "environment": "tool_use", "tools": ["calculator", "python"]}`.

The model may call its tools until it answers; the answer is what follows the last "Answer:" it writes, or
else all it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rollout.calculator import calculator
from rollout.tasks import Task, TaskFileError
from rollout.tool_task import ToolTask
from rollout.tools.code import CodeTools
from rollout.word_problems import is_same_answer

_CODE_TOOLS = ("python", "bash", "edit")
_ANSWER = re.compile(r".*answer:", re.IGNORECASE | re.DOTALL)


class ToolUse(ToolTask):
    """One such question."""

    system = 'Answer the question. End with "Answer: " and the answer alone.'

    @staticmethod
    def needs_sandbox(task: Task) -> bool:
        return any(name in _CODE_TOOLS for name in _names(task))

    def tools(self) -> Sequence[Callable[..., object]]:
        return [
            getattr(CodeTools(self.sandbox), name) if name in _CODE_TOOLS else calculator
            for name in _names(self.task)
        ]

    async def reward(self, answer: str) -> float:
        return float(is_same_answer(_ANSWER.sub("", answer), self.task.answer))


def _names(task: Task) -> list[str]:
    named = task.details.get("tools", ["calculator"])
    known = ("calculator", *_CODE_TOOLS)
    if not isinstance(named, list) or not all(name in known for name in named):
        raise TaskFileError(
            f'"tools" of task {task.task_id} must be a list of {", ".join(known)}, got {named!r}'
        )
    return named

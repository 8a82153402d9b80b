"""The seam between an agent and the world it acts in.

An environment gives the opening conversation, then answers each of the model's replies and says when
the task is done and what it was worth. It sees text, never token ids. It is used for one trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rollout.tasks import ENVIRONMENTS, Task


class ToolError(Exception):
    """A tool refuses its input; the message is short and meant for the model. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, user or assistant."""
    content: str


@dataclass(frozen=True, slots=True)
class Step:
    """The environment's answer to one reply of the model."""

    reply: str | None
    """What the model is told next; None when done."""
    reward: float
    """Earned by this reply; a trajectory's reward is the sum."""
    done: bool
    tool_calls: int = 0
    """Tools this reply made run."""

    def __post_init__(self) -> None:
        if not self.done and self.reply is None:
            raise ValueError("a step that is not done must tell the model something")


class Environment(Protocol):
    """One task being played."""

    def reset(self) -> tuple[Message, ...]:
        """The whole opening conversation, demonstrations included."""

    async def step(self, text: str) -> Step:
        """Answer `text`, which the model just generated (decoded, without its end-of-turn token).

        An exception means that the environment broke; it ends the trajectory and is recorded on it.
        """


def make_environment(task: Task) -> Environment:
    """A fresh environment for one trajectory of `task`."""
    # Imported here because each environment imports this file's types.
    match task.environment:
        case "word_problems":
            from rollout.word_problems import WordProblem

            return WordProblem(task)
        case "chain_arithmetic":
            from rollout.chain_arithmetic import ChainArithmetic

            return ChainArithmetic(task)
        case name:
            known = ", ".join(ENVIRONMENTS)
            raise ValueError(f"environment {name!r} of task {task.task_id} is unknown; known: {known}")

"""The seam between an agent and the world it acts in.

An environment gives the opening conversation, then answers each of the model's replies and says when
the task is done and what it was worth. It sees text, never token ids. It is used for one trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

ToolSchema = dict[str, Any]
"""A tool as chat templates take it: {"type": "function", "function": {name, description, parameters}}."""


class ToolError(Exception):
    """A tool says no; the message is short and meant for the model. Nothing was done."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool's name and what to call it with."""

    name: str
    arguments: dict[str, object]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, user, assistant, or tool for what a tool gave."""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant called, where its content does not tell it."""


Reply = str | tuple[Message, ...]
"""What a model is told between two of its turns; a text is one message of the user's."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a trajectory begins with."""

    messages: tuple[Message, ...]
    """The whole opening conversation, demonstrations included."""
    tools: tuple[ToolSchema, ...] = ()
    """Tools that the model may call in the form of rollout.tools.calls."""


@dataclass(frozen=True, slots=True)
class Step:
    """The environment's answer to one reply of the model."""

    reply: Reply | None
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
    """One task being played. What any of its methods raises ends the trajectory and is recorded on it."""

    async def reset(self) -> Opening:
        """Begin."""

    async def step(self, text: str) -> Step:
        """Answer `text`, which the model just generated (decoded, without its end-of-turn token)."""

    async def close(self) -> None:
        """Give back what the task holds, however it ended. Called once, after everything else."""

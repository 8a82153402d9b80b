"""What a request tells the model, and whether it goes on from what a context has heard.

A request carries its whole conversation. If that begins with everything a context has heard and said, only
the rest is new: it is tokenised and appended, and the ids that are there stay as they were sampled. Nothing
is known here of engines or of HTTP.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rollout.environment import Message, ToolCall, ToolSchema
from rollout.prompt_format import PromptFormat


@dataclass(frozen=True, slots=True)
class Said:
    """A turn of the model, as the client was given it."""

    token_ids: array[int]
    content: str
    calls: tuple[ToolCall, ...] = ()


class Told(Protocol):
    """All that one request tells the model."""

    def opening(self, speech: PromptFormat) -> Sequence[int]:
        """Ids that a fresh context begins with."""

    def more(self, heard: Told, speech: PromptFormat, *, ended: bool) -> Sequence[int] | None:
        """Ids that a context gains which has heard `heard`; None if this does not go on from there.

        `ended`: whether that context's last token closes the model's turn.
        """

    def answered(self, said: Said) -> Told:
        """What a context has heard once the model has answered."""


@dataclass(frozen=True, slots=True)
class ChatTold:
    """Messages, and the tools that the model may call."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()

    def opening(self, speech: PromptFormat) -> Sequence[int]:
        return speech.open(self.messages, self.tools)

    def more(self, heard: Told, speech: PromptFormat, *, ended: bool) -> Sequence[int] | None:
        if not isinstance(heard, ChatTold) or self.tools != heard.tools:
            return None
        num_heard, rest = len(heard.messages), self.messages[len(heard.messages) :]
        if not rest or any(message.role == "assistant" for message in rest):
            return None
        begins = zip(self.messages[:num_heard], heard.messages, strict=True)
        if not all(_comparable(mine) == _comparable(theirs) for mine, theirs in begins):
            return None
        return speech.reply(rest, ended=ended)

    def answered(self, said: Said) -> Told:
        return replace(self, messages=(*self.messages, Message("assistant", said.content, said.calls)))


@dataclass(frozen=True, slots=True)
class IdsTold:
    """Token ids as they are."""

    token_ids: array[int]

    def opening(self, speech: PromptFormat) -> Sequence[int]:
        return self.token_ids

    def more(self, heard: Told, speech: PromptFormat, *, ended: bool) -> Sequence[int] | None:
        if not isinstance(heard, IdsTold) or self.token_ids[: len(heard.token_ids)] != heard.token_ids:
            return None
        return self.token_ids[len(heard.token_ids) :]

    def answered(self, said: Said) -> Told:
        return IdsTold(self.token_ids + said.token_ids)


def _comparable(message: Message) -> Message:
    """Agents trim what a model said, and keep its calls as data."""
    return replace(message, content=message.content.strip()) if message.role == "assistant" else message

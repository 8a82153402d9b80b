"""How answers are written on the wire, whole or as the chunks of a stream.

Logprobs of a stream stand in its last chunk, with the token ids.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, Protocol

from pydantic import BaseModel

from engines.types import FinishReason
from rollout.environment import ToolCall
from rollout.serve import wire
from rollout.serve.asked import Asked
from rollout.serve.served_model import Reply, ServedModel


class Writer(Protocol):
    """How one kind of answer is written: whole, or as the chunks of a stream."""

    def whole(self, reply: Reply) -> BaseModel:
        """All of it at once."""

    def began(self) -> list[dict[str, Any]]:
        """What a stream begins with."""

    def text(self, text: str) -> dict[str, Any]:
        """A piece of the text."""

    def ended(self, reply: Reply) -> list[dict[str, Any]]:
        """What a stream tells once the turn has ended."""


class ChatWriter:
    """Of a chat completion."""

    def __init__(self, model: ServedModel, asked: Asked) -> None:
        self._model = model
        self._asked = asked
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, reply: Reply) -> BaseModel:
        choice = wire.ChatChoice(
            index=0,
            message=wire.AnswerMessage(
                content=_content(reply),
                tool_calls=[_call(call) for call in reply.said.calls] or None,
            ),
            logprobs=self._logprobs(reply),
            finish_reason=_chat_reason(reply),
            token_ids=list(reply.said.token_ids) if self._asked.token_ids else None,
        )
        return wire.ChatAnswer(
            id=self._id,
            created=self._created,
            model=self._model.name,
            system_fingerprint=_fingerprint(reply),
            usage=_usage(reply),
            choices=[choice],
            prompt_token_ids=list(reply.prompt_ids) if self._asked.token_ids else None,
        )

    def began(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def text(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text})

    def ended(self, reply: Reply) -> list[dict[str, Any]]:
        chunks = []
        if reply.said.calls:
            calls = [
                {"index": index, **_call(call).model_dump()} for index, call in enumerate(reply.said.calls)
            ]
            chunks.append(self._chunk({"tool_calls": calls}))
        last = self._chunk({}, finish_reason=_chat_reason(reply))
        logprobs = self._logprobs(reply)
        if logprobs is not None:
            last["choices"][0]["logprobs"] = logprobs.model_dump()
        if self._asked.token_ids:
            last["choices"][0]["token_ids"] = list(reply.said.token_ids)
            last["prompt_token_ids"] = list(reply.prompt_ids)
        last["system_fingerprint"] = _fingerprint(reply)
        chunks.append(last)
        if self._asked.include_usage:
            chunks.append(self._chunk(None) | {"usage": _usage(reply).model_dump()})
        return chunks

    def _logprobs(self, reply: Reply) -> wire.ChatLogprobs | None:
        if not self._asked.logprobs:
            return None
        return wire.ChatLogprobs(
            content=[
                wire.TokenLogprob(
                    token=(text := self._model.token_text(token_id)),
                    logprob=logprob,
                    bytes=list(text.encode(errors="replace")),
                    top_logprobs=[],
                )
                for token_id, logprob in zip(reply.result.token_ids, reply.result.logprobs, strict=True)
            ]
        )

    def _chunk(self, delta: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model.name,
            "choices": [] if delta is None else [choice],
        }


class CompletionWriter:
    """Of a completion."""

    def __init__(self, model: ServedModel, asked: Asked) -> None:
        self._model = model
        self._asked = asked
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, reply: Reply) -> BaseModel:
        return wire.CompletionAnswer(
            id=self._id,
            created=self._created,
            model=self._model.name,
            system_fingerprint=_fingerprint(reply),
            usage=_usage(reply),
            choices=[self._choice(reply, reply.said.content)],
        )

    def began(self) -> list[dict[str, Any]]:
        return []

    def text(self, text: str) -> dict[str, Any]:
        return self._chunk([{"index": 0, "text": text, "logprobs": None, "finish_reason": None}])

    def ended(self, reply: Reply) -> list[dict[str, Any]]:
        last = self._chunk([self._choice(reply, "").model_dump()])
        last["system_fingerprint"] = _fingerprint(reply)
        usage = self._chunk([]) | {"usage": _usage(reply).model_dump()}
        return [last, usage] if self._asked.include_usage else [last]

    def _choice(self, reply: Reply, text: str) -> wire.CompletionChoice:
        return wire.CompletionChoice(
            index=0,
            text=text,
            logprobs=self._logprobs(reply),
            finish_reason=_reason(reply),
            token_ids=list(reply.said.token_ids) if self._asked.token_ids else None,
            prompt_token_ids=list(reply.prompt_ids) if self._asked.token_ids else None,
        )

    def _logprobs(self, reply: Reply) -> wire.CompletionLogprobs | None:
        if not self._asked.logprobs:
            return None
        tokens = [self._model.token_text(token_id) for token_id in reply.result.token_ids]
        offsets = [0]
        for token in tokens:
            offsets.append(offsets[-1] + len(token))
        return wire.CompletionLogprobs(
            tokens=tokens, token_logprobs=list(reply.result.logprobs), text_offset=offsets[:-1]
        )

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.name,
            "choices": choices,
        }


def _content(reply: Reply) -> str | None:
    return None if reply.said.calls and not reply.said.content else reply.said.content


def _call(call: ToolCall) -> wire.Call:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = wire.CalledFunction(name=call.name, arguments=arguments)
    return wire.Call(id=f"call_{uuid.uuid4().hex[:24]}", function=function)


def _reason(reply: Reply) -> Any:
    return "length" if reply.result.finish_reason is FinishReason.LENGTH else "stop"


def _chat_reason(reply: Reply) -> Any:
    return "tool_calls" if reply.said.calls else _reason(reply)


def _fingerprint(reply: Reply) -> str:
    return f"weights-{reply.result.weights_version}"


def _usage(reply: Reply) -> wire.Usage:
    prompt, output = len(reply.prompt_ids), len(reply.said.token_ids)
    return wire.Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=prompt + output,
        prompt_tokens_details=wire.CachedTokens(cached_tokens=reply.result.hit_tokens),
    )

"""The model as the endpoint serves it: one turn on the engines, within its context, and what became of it.

It keeps nothing between requests. A cancelled request is taken back from the engines.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from engines.client import EngineClient
from engines.context import Context
from engines.errors import EngineError
from engines.model.load import ModelFolder
from engines.model.tokenizer import end_token_ids, load_tokenizer
from engines.types import FinishReason, RequestId, SamplingParams, TurnResult
from rollout.config import RunConfig
from rollout.prompt_format import PromptFormatError, open_format
from rollout.serve.answer import Answer
from rollout.serve.asked import Asked
from rollout.serve.errors import ApiError, of_engines
from rollout.serve.told import Said, Told

T = TypeVar("T")
OnText = Callable[[str], None]
"""Hears each piece of an answer's text, as soon as it is sure."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A request that was served."""

    asked: Asked
    prompt_ids: array[int]
    said: Said
    result: TurnResult


class ServedModel:
    """All methods belong to one event loop."""

    def __init__(self, engines: EngineClient, folder: ModelFolder, config: RunConfig) -> None:
        path = str(folder.path)
        self._engines = engines
        self._deadline_s = config.serve.request_timeout_s
        self._tokenizer: Any = load_tokenizer(path)
        self.speech = open_format(self._tokenizer, end_token_ids(path))
        self.name = config.serve.model_name or folder.path.resolve().name
        self.num_ids: int = len(self._tokenizer)
        self.max_context_tokens = min(config.task.max_context_tokens, folder.max_context_tokens)
        self.sampling: SamplingParams = replace(config.sampling.params(), stop_ids=self.speech.stop_ids)
        """What a request leaves open."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, in which special tokens are read."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def token_text(self, token_id: int) -> str:
        return self.speech.text([token_id]) or str(self._tokenizer.convert_ids_to_tokens(token_id))

    def context(self, told: Told) -> Context:
        """A fresh context that has heard it. Raises ApiError if the chat template cannot tell it."""
        context = self._engines.open_context()
        context.append(_tellable(lambda: told.opening(self.speech)))
        return context

    def more(self, told: Told, heard: Told, *, ended: bool) -> array[int] | None:
        """What a context gains that has heard `heard`; None if `told` does not go on from there."""
        ids = _tellable(lambda: told.more(heard, self.speech, ended=ended))
        return None if ids is None else array("i", ids)

    async def reply(
        self, context: Context, asked: Asked, request_id: RequestId, on_text: OnText | None = None
    ) -> Reply:
        """Have the model speak after `context`, which stays as it is. Raises ApiError."""
        sampling = replace(asked.sampling, max_tokens=self._room(len(context), asked))
        answer = Answer(self.speech, sampling.stop_strings, reads_calls=asked.reads_calls)

        def on_tokens(token_ids: array[int]) -> None:
            assert on_text is not None
            on_text(answer.push(token_ids))

        following = nullcontext() if on_text is None else self._engines.following(request_id, on_tokens)
        try:
            with following:
                result = await self._engines.run_turn(context, request_id, sampling, self._deadline_s)
        except EngineError as error:
            raise of_engines(error) from error
        if result.finish_reason is FinishReason.ABORTED:
            raise ApiError(503, f"{request_id} was taken back by its engine", code="engines_failed")
        try:
            rest, said = answer.end(result.token_ids)
        except ValueError as error:
            raise ApiError(503, f"{request_id}: {error}", code="engines_failed") from error
        if on_text is not None:
            on_text(rest)
        return Reply(asked, context.token_ids[:], said, result)

    def _room(self, prompt_tokens: int, asked: Asked) -> int:
        """Output tokens the turn may have."""
        most, wanted = self.max_context_tokens, asked.max_tokens
        if prompt_tokens >= most:
            raise ApiError(
                400,
                f"the context holds {most} tokens and the prompt has {prompt_tokens}; shorten it",
                code="context_length_exceeded",
            )
        if wanted is not None and prompt_tokens + wanted > most:
            raise ApiError(
                400,
                f"the context holds {most} tokens, the prompt has {prompt_tokens} and {wanted} more are "
                f"asked for; ask for at most {most - prompt_tokens}",
                code="context_length_exceeded",
                param="max_tokens",
            )
        return wanted or min(asked.sampling.max_tokens, most - prompt_tokens)


def _tellable(tell: Callable[[], T]) -> T:
    try:
        return tell()
    except PromptFormatError as error:
        raise ApiError(400, str(error), param="messages") from error
    except RecursionError as error:
        raise ApiError(400, "what a call is given is nested too deeply", param="messages") from error

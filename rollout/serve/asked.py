"""Requests from the wire, read and judged: what the model is told, how it shall answer, what is refused.

Everything that can be wrong with a request by itself is found here. Nothing is known of engines or sessions.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from engines.types import SamplingParams
from rollout.environment import Message, ToolCall, ToolSchema
from rollout.serve.errors import ApiError
from rollout.serve.told import ChatTold, IdsTold, Told
from rollout.serve.wire import Call, ChatMessage, ChatRequest, CompletionRequest, SamplingFields, ToolSpec

_NOT_TO_BE_HAD: Mapping[str, Sequence[object]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_json": (),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "prompt_logprobs": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "top_logprobs": (0,),
}
"""Fields that would change the answer, and values of them that would not."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, ready to be served."""

    told: Told
    sampling: SamplingParams
    """Its max_tokens still has to fit the context."""
    max_tokens: int | None
    """As the client wants it; None: as there is room."""
    reads_calls: bool
    """Whether tool calls are read out of the answer."""
    stream: bool
    include_usage: bool
    logprobs: bool
    token_ids: bool


def read_chat(request: ChatRequest, defaults: SamplingParams) -> Asked:
    """Raises ApiError."""
    _refuse_unavailable(request)
    if request.tool_choice not in (None, "auto", "none"):
        raise ApiError(
            400, "tool_choice must be 'auto' or 'none': calls cannot be forced", param="tool_choice"
        )
    messages = tuple(_message(index, message) for index, message in enumerate(request.messages))
    tools = tuple(_tool(index, tool) for index, tool in enumerate(request.tools or ()))
    return _asked(
        request,
        ChatTold(messages, tools),
        defaults,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        reads_calls=bool(tools) and request.tool_choice != "none",
    )


def read_completion(
    request: CompletionRequest, defaults: SamplingParams, encode: Callable[[str], list[int]], num_ids: int
) -> Asked:
    """`encode` reads text, special tokens in it too; ids are below `num_ids`. Raises ApiError."""
    _refuse_unavailable(request)
    prompt: Any = request.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise ApiError(400, f"prompt must be one prompt, got {len(prompt)}; ask for each", param="prompt")
        prompt = prompt[0]
    token_ids = array("i", encode(prompt) if isinstance(prompt, str) else prompt)
    if not token_ids:
        raise ApiError(400, "prompt is empty; give at least one token", param="prompt")
    if max(token_ids) >= num_ids:
        raise ApiError(
            400, f"prompt has token id {max(token_ids)}; the model knows 0..{num_ids - 1}", param="prompt"
        )
    return _asked(request, IdsTold(token_ids), defaults, max_tokens=request.max_tokens, reads_calls=False)


def _asked(
    request: SamplingFields,
    told: Told,
    defaults: SamplingParams,
    *,
    max_tokens: int | None,
    reads_calls: bool,
) -> Asked:
    given = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": None if request.top_k is None else max(0, request.top_k),
        "min_p": request.min_p,
        "seed": request.seed,
        "stop_ids": () if request.ignore_eos else None,
    }
    set_here: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    stops = dict.fromkeys((*defaults.stop_strings, *request.stop_strings()))
    try:
        sampling = replace(defaults, stop_strings=tuple(stops), **set_here)
    except ValueError as error:
        raise ApiError(400, str(error).removeprefix("sampling.")) from error
    logprobs = getattr(request, "logprobs", None)
    return Asked(
        told=told,
        sampling=sampling,
        max_tokens=max_tokens,
        reads_calls=reads_calls,
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        logprobs=logprobs is not None and logprobs is not False,
        token_ids=bool(request.return_token_ids),
    )


def _refuse_unavailable(request: SamplingFields) -> None:
    for name, value in (request.model_extra or {}).items():
        if name in _NOT_TO_BE_HAD and value is not None and value not in _NOT_TO_BE_HAD[name]:
            raise ApiError(400, f"{name}={_shown(value)} is not supported; leave it out", param=name)


def _message(index: int, message: ChatMessage) -> Message:
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    if message.tool_calls and role != "assistant":
        where = f"messages[{index}].tool_calls"
        raise ApiError(400, f"{where} must be an assistant's, got role {message.role}", param=where)
    calls = (_call(f"messages[{index}].tool_calls[{place}]", call) for place, call in _numbered(message))
    return Message(role, content or "", tuple(calls))


def _numbered(message: ChatMessage) -> enumerate[Call]:
    return enumerate(message.tool_calls or ())


def _call(where: str, call: Call) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments or "{}")
        json.dumps(arguments, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where}.function.arguments is not the JSON of an object", param=where)
    return ToolCall(call.function.name, arguments)


def _tool(index: int, tool: ToolSpec) -> ToolSchema:
    """As a chat template is told of it. Raises ApiError where its parameters are no JSON schema of an
    object."""
    where = f"tools[{index}].function.parameters"
    parameters = tool.function.parameters or {"type": "object", "properties": {}}
    try:
        Draft202012Validator.check_schema(parameters)
        json.dumps(parameters, ensure_ascii=False).encode()
    except SchemaError as error:
        place = error.json_path.removeprefix("$")
        raise ApiError(
            400, f"{where} is not a JSON schema: {place or 'it'}: {_line(error.message)}", param=where
        ) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"{where} cannot be read: {_line(str(error))}", param=where) from error
    if parameters.get("type") != "object":
        raise ApiError(
            400,
            f'{where} must describe an object, "type": "object"; got {_shown(parameters.get("type"))}',
            param=where,
        )
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    return {"type": "function", "function": {**function, "parameters": parameters}}


def _shown(value: object) -> str:
    return _line(json.dumps(value))


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."

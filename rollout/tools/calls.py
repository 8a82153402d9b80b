"""Tool calls in a model's text, in the form that the chat templates of Qwen, Hermes and others teach:

    <tool_call>
    {"name": "calculator", "arguments": {"expression": "6*7"}}
    </tool_call>

A model whose template knows no tools is told this form in words. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from rollout.environment import ToolCall, ToolSchema
from rollout.tools.tool import MalformedCall

CALL_BEGINS = "<tool_call>"
_OPENING = re.compile(CALL_BEGINS + r"\s*")
_JSON = json.JSONDecoder()
_HELP = 'write <tool_call>{"name": NAME, "arguments": {...}}</tool_call>'


def spoken(text: str) -> str:
    """What a model said aloud: its text without the reasoning before it."""
    if "</think>" in text:
        return text.rpartition("</think>")[2]
    return text.partition("<think>")[0]


def read_calls(text: str) -> list[ToolCall | MalformedCall]:
    """The calls in what a model said, in order; those that cannot be read as what is wrong with them."""
    said, place = spoken(text), 0
    calls: list[ToolCall | MalformedCall] = []
    while found := _OPENING.search(said, place):
        place = found.end()
        try:
            # What the call holds may itself speak of calls, so its end is the JSON's.
            call, place = _JSON.raw_decode(said, place)
            calls.append(_read(call))
        except MalformedCall as error:
            calls.append(error)
        except (ValueError, RecursionError) as error:
            calls.append(MalformedCall(f"this call is not JSON ({error}); {_HELP}"))
    return calls


def split_calls(text: str) -> tuple[str, list[ToolCall]]:
    """What a model said ahead of its calls, and the calls; if one of them cannot be read, all of it was
    said."""
    calls = read_calls(text)
    good = [call for call in calls if isinstance(call, ToolCall)]
    if not good or len(good) < len(calls):
        return text, []
    said = spoken(text)
    thought = text[: -len(said)] if text.endswith(said) else ""
    return thought + said.partition(CALL_BEGINS)[0], good


def describe_tools(tools: Sequence[ToolSchema]) -> str:
    """What a system message tells of tools where the chat template does not."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You may call these tools, described by JSON schemas:\n{lines}\n"
        'To call one, write <tool_call>{"name": NAME, "arguments": {...}}</tool_call> and end your turn; its '
        "result follows as <tool_response>...</tool_response>. When you are done, answer without a call."
    )


def write_calls(calls: Sequence[ToolCall]) -> str:
    """What a model writes that calls these tools."""
    return "\n".join(
        "<tool_call>\n"
        + json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        + "\n</tool_call>"
        for call in calls
    )


def describe_result(result: str) -> str:
    """A tool's result, told by a user where the chat template has no place for it."""
    return f"<tool_response>\n{result}\n</tool_response>"


def _read(call: object) -> ToolCall:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise MalformedCall(f"this call names no tool; {_HELP}")
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise MalformedCall(f'"arguments" of {call["name"]} is not an object; {_HELP}')
    return ToolCall(call["name"], arguments)

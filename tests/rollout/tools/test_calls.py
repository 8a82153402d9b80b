"""Calls in a model's text: what is read, what is told of those that cannot be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.environment import ToolCall
from rollout.tools.calls import describe_tools, read_calls, spoken
from rollout.tools.tool import MalformedCall

plain = st.text(st.characters(exclude_characters="<"))
arguments = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.booleans(), plain), max_size=3)


def written(name: str, **given: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': given})}\n</tool_call>"


@given(st.lists(st.tuples(st.text(), arguments), max_size=3), plain)
def test_calls_are_read_in_order_whatever_stands_around_them(
    calls: list[tuple[str, dict[str, object]]], around: str
) -> None:
    calls = [(name, {**given, "says": "</tool_call>"}) for name, given in calls]
    text = around + around.join(
        f"<tool_call>{json.dumps({'name': name, 'arguments': given})}</tool_call>" for name, given in calls
    )
    assert read_calls(text) == [ToolCall(name, given) for name, given in calls]


def test_a_call_whose_end_was_the_end_of_the_turn_is_read() -> None:
    assert read_calls('I look.<tool_call>{"name": "look"}') == [ToolCall("look", {})]
    two = '<tool_call>{"name": "a"}\n<tool_call>{"name": "b"}</tool_call>'
    assert read_calls(two) == [ToolCall("a", {}), ToolCall("b", {})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<tool_call>look</tool_call>", "not JSON"),
        ("<tool_call></tool_call>", "not JSON"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not JSON"),
        ('<tool_call>["look"]</tool_call>', "names no tool"),
        ('<tool_call>{"tool": "look"}</tool_call>', "names no tool"),
        ('<tool_call>{"name": "look", "arguments": [1]}</tool_call>', '"arguments" of look is not an object'),
    ],
)
def test_a_malformed_call_says_what_is_wrong_and_what_to_write(text: str, words: str) -> None:
    (call,) = read_calls(text)
    assert isinstance(call, MalformedCall)
    assert words in str(call)
    assert "<tool_call>{" in str(call)


def test_reasoning_is_not_heard() -> None:
    text = f"<think>perhaps {written('rm')}?</think>\n\n{written('ls')}"
    assert read_calls(text) == [ToolCall("ls", {})]
    assert spoken("<think>a</think>b") == "b"
    assert read_calls(f"<think>never ends {written('rm')}") == []
    assert spoken("plain") == "plain"


def test_tools_in_words_show_each_schema_and_the_form_of_a_call() -> None:
    told = describe_tools([{"type": "function", "function": {"name": "look", "description": "Look."}}])
    assert '{"name": "look", "description": "Look."}' in told
    assert "<tool_call>" in told

"""From a plain typed function to what a model is told of it, and back from a call to its arguments."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import pytest
from pydantic import Field

from rollout.compose import load_config
from rollout.tools.runner import ToolRunner
from rollout.tools.tool import Function, MalformedCall, Tool, result_text, tool


def search(query: str, limit: int = 3, kind: Literal["web", "mail"] = "web") -> list[str]:
    """Search for something."""
    return [f"{kind}: {query}"] * limit


@tool(timeout_s=2.0, max_concurrent=1, idempotent=True)
async def book(city: str, nights: Annotated[int, Field(ge=1, description="How long to stay.")]) -> str:
    """Book a room.

    It is yours at once.
    """
    return f"{nights} nights in {city}"


def call(function: Function, **arguments: object) -> str:
    runner = ToolRunner(load_config().tools)
    return asyncio.run(runner.call(Tool.of(function), arguments))


def test_the_schema_is_what_the_signature_and_the_docstring_say() -> None:
    assert Tool.of(search).schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search for something.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "limit": {"type": "integer", "default": 3},
                    "kind": {"type": "string", "enum": ["web", "mail"], "default": "web"},
                },
                "required": ["query"],
            },
        },
    }
    nights = Tool.of(book).schema["function"]["parameters"]["properties"]["nights"]
    assert nights == {"type": "integer", "minimum": 1, "description": "How long to stay."}
    assert Tool.of(book).schema["function"]["description"] == "Book a room.\n\nIt is yours at once."


def test_a_function_stays_a_plain_function_and_carries_its_traits() -> None:
    assert asyncio.run(book("Oslo", 2)) == "2 nights in Oslo"
    assert Tool.of(book).traits.idempotent
    assert Tool.of(book).traits.timeout_s == 2.0
    assert not Tool.of(search).traits.idempotent


def test_sync_and_async_functions_and_methods_are_called_with_their_defaults() -> None:
    class Shelf:
        def __init__(self) -> None:
            self.books = ["one"]

        def add(self, title: str) -> int:
            """Put a book on the shelf."""
            self.books.append(title)
            return len(self.books)

    assert call(search, query="x") == '["web: x", "web: x", "web: x"]'
    assert call(book, city="Oslo", nights="2") == "2 nights in Oslo"
    first, second = Shelf(), Shelf()
    assert (call(first.add, title="two"), call(second.add, title="zwei")) == ("2", "2")
    assert (first.books, second.books) == (["one", "two"], ["one", "zwei"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "bad arguments for search: query: Field required"),
        ({"query": 3}, "query: Input should be a valid string"),
        ({"query": "x", "limit": "many"}, "limit: Input should be a valid integer"),
        ({"query": "x", "kind": "fax"}, "kind: Input should be 'web' or 'mail'"),
        ({"query": "x", "colour": "blue"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(MalformedCall, match=words):
        Tool.of(search).read(arguments)


def test_a_function_that_cannot_be_a_tool_is_refused_saying_why() -> None:
    def silent(x: int) -> int:
        return x

    def untyped(x) -> int:  # type: ignore[no-untyped-def]
        """Do it."""
        return int(x)

    def starred(*x: int) -> int:
        """Do it."""
        return sum(x)

    for function, words in ((silent, "no docstring"), (untyped, "x has no type"), (starred, "by name")):
        with pytest.raises(TypeError, match=words):
            Tool.of(function)
    with pytest.raises(TypeError, match="named function"):
        Tool.of(lambda x: x)


def test_a_result_is_told_as_text_or_as_json() -> None:
    assert result_text("as it is") == "as it is"
    assert result_text({"é": [1, None]}) == '{"é": [1, null]}'

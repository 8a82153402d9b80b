"""A tool: a plain typed function with a docstring, and what a model is told of it.

The schema in the prompt and the check of a call's arguments are made from one place, the function's
signature. Its docstring is the description. A function is left as it is; `tool` only notes on it how it may
be called.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypeVar, get_type_hints
from weakref import WeakKeyDictionary

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rollout.environment import ToolError, ToolSchema

Function = Callable[..., object]
_FunctionType = TypeVar("_FunctionType", bound=Function)
_NOTED = "_tool_traits"


class MalformedCall(ToolError):
    """A call that no tool can be made to answer; the message tells the model what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How a tool may be called; None: as ToolsConfig says."""

    timeout_s: float | None = None
    max_concurrent: int | None = None
    idempotent: bool = False
    """Whether calling it twice does no more than calling it once."""


def tool(
    *, timeout_s: float | None = None, max_concurrent: int | None = None, idempotent: bool = False
) -> Callable[[_FunctionType], _FunctionType]:
    """Note on a function how it may be called; functions without the note are called as configured, once."""

    def note(function: _FunctionType) -> _FunctionType:
        setattr(function, _NOTED, Traits(timeout_s, max_concurrent, idempotent))
        return function

    return note


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    function: Function
    name: str
    schema: ToolSchema
    """What the prompt tells of it."""
    traits: Traits
    arguments: TypeAdapter[dict[str, Any]]
    """What its arguments must be."""

    @classmethod
    def of(cls, function: Function) -> Tool:
        """The tool that a function is; TypeError if its signature or docstring does not make it one."""
        plain = getattr(function, "__func__", function)  # of a method, whose self is not an argument
        if plain not in _MADE:
            _MADE[plain] = _describe(function)
        name, schema, arguments = _MADE[plain]
        return cls(function, name, schema, getattr(function, _NOTED, Traits()), arguments)

    def read(self, arguments: Mapping[str, object]) -> dict[str, Any]:
        """The arguments of a call, as the function's types; MalformedCall if they are not."""
        try:
            return self.arguments.validate_python(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise MalformedCall(f"bad arguments for {self.name}: {place}: {first['msg']}") from None


def result_text(result: object) -> str:
    """What a model is told of a function's result: a text as it is, anything else as JSON."""
    if isinstance(result, str):
        return result
    return json.dumps(result, ensure_ascii=False, default=str)


_make_kinds: Any = TypedDict
"""Called with a name that is not known before."""
_MADE: WeakKeyDictionary[Any, tuple[str, ToolSchema, TypeAdapter[dict[str, Any]]]] = WeakKeyDictionary()


def _describe(function: Function) -> tuple[str, ToolSchema, TypeAdapter[dict[str, Any]]]:
    name: str = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise TypeError(f"a tool must be a named function, got {function!r}")
    description = inspect.getdoc(function)
    if not description:
        raise TypeError(f"tool {name} has no docstring; a model would not know what it does")
    kinds = _make_kinds(name, _fields(name, function))
    kinds.__pydantic_config__ = ConfigDict(extra="forbid")
    arguments: TypeAdapter[dict[str, Any]] = TypeAdapter(kinds)
    parameters = _without_titles(arguments.json_schema())
    parameters.pop("additionalProperties", None)
    schema = {"name": name, "description": description, "parameters": parameters}
    return name, {"type": "function", "function": schema}, arguments


def _fields(name: str, function: Function) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: {parameter} cannot be given by name")
        if parameter.name not in hints:
            raise TypeError(f"tool {name}: parameter {parameter.name} has no type")
        kind = hints[parameter.name]
        if parameter.default is not parameter.empty:
            kind = NotRequired[Annotated[kind, Field(json_schema_extra={"default": parameter.default})]]
        found[parameter.name] = kind
    return found


def _without_titles(schema: Any) -> Any:
    """Without the names that pydantic gives to everything."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_without_titles(item) for item in schema] if isinstance(schema, list) else schema

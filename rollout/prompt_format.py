"""Text to token ids and back, at the boundaries of turns.

Token in, token out: a text is tokenised once, when it enters the context, and the ids already there
are never tokenised again. A context is

    open(messages)   then per turn   [sampled ids] [reply ids]

where the reply ids close the model's turn, hold what the environment said, and open the next turn of
the model. For a chat model they are taken from its own template, by rendering marked conversations and
cutting out what stands between the marks; so the template need not be known here, and one that drops
earlier reasoning never sees it: history stays as it was sampled.

Tools are told in the template's own way where it has one and its calls can be read (rollout.tools.calls), and
else in words. Text that came from elsewhere never becomes a special token (rollout.text_encoder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from rollout.environment import Message, Reply, ToolCall, ToolSchema
from rollout.errors import UserError
from rollout.text_encoder import TextEncoder
from rollout.tools.calls import describe_result, describe_tools, read_calls, write_calls

_PROBE: ToolSchema = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe": {"type": "string"}}},
    },
}
_PROBE_CALL = ToolCall("probe_tool", {"probe": "value"})


class PromptFormatError(UserError):
    """A tokenizer or chat template that cannot carry a multi-turn conversation; one line says why."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    name_or_path: str
    chat_template: str | None
    eos_token_id: int | None
    all_special_ids: list[int]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        tools: list[ToolSchema] | None,
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str: ...

    def get_added_vocab(self) -> dict[str, int]: ...


class PromptFormat(Protocol):
    """How conversations become token ids for one model."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end the model's turn."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end the model's turn."""

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """Ids of the opening, after which the model speaks and may call `tools`."""

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether these sampled ids close the model's turn as the format does."""

    def reply(self, reply: Reply, *, ended: bool) -> list[int]:
        """Ids to append after a turn of the model, so that it hears `reply` and speaks again.

        `ended` says that the turn's closing token was sampled; if not, it is put in.
        """

    def text(self, token_ids: Sequence[int]) -> str:
        """What the model said, without the token that ended its turn."""


class ChatFormat:
    """The format of a model with a chat template."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int] = ()) -> None:
        """`eos_ids` are further end tokens, those of the model's generation config."""
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self._gaps: dict[tuple[str, ...], list[str]] = {}
        self._has_tools = _has_tools(tokenizer)
        closing = self._encoder.encode(self._around(("user",))[0])
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        self._num_closing = next((n for n, i in enumerate(closing, 1) if i in special), 0)
        self._end_id = closing[self._num_closing - 1] if self._num_closing else None
        self._stop_ids = _unique(self._end_id, tokenizer.eos_token_id, *eos_ids)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._stop_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        if not self._has_tools:
            messages, tools = _in_words(messages, tools), ()
        return self._encoder.encode(_render(self._tokenizer, [self._told(m) for m in messages], tools))

    def ended(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) > 0 and token_ids[-1] == self._end_id

    def reply(self, reply: Reply, *, ended: bool) -> list[int]:
        messages = reply if self._has_tools and not isinstance(reply, str) else (_one_message(reply),)
        first, *others = self._around(tuple(message.role for message in messages))
        guarded = (self._encoder.guard(message.content) for message in messages)
        rendered = first + "".join(text + gap for text, gap in zip(guarded, others, strict=True))
        ids = self._encoder.encode(rendered)
        return ids[self._num_closing :] if ended else ids

    def _told(self, message: Message) -> dict[str, Any]:
        """The message as the template takes it; nothing in it becomes a special token."""
        guard = self._encoder.guard
        told: dict[str, Any] = {"role": message.role, "content": guard(message.content)}
        if message.tool_calls:
            told["tool_calls"] = [
                _as_told(guard(call.name), _guarded(call.arguments, guard)) for call in message.tool_calls
            ]
        return told

    def _around(self, roles: tuple[str, ...]) -> list[str]:
        """What the template writes before, between and after messages of these roles that follow a turn."""
        if roles not in self._gaps:
            self._gaps[roles] = _between_turns(self._tokenizer, roles)
        return self._gaps[roles]

    def text(self, token_ids: Sequence[int]) -> str:
        return _decode_turn(self._tokenizer, token_ids, self._stop_ids)


class PlainFormat:
    """Raw text, for a model without a chat template: messages and replies follow one another."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int] = ()) -> None:
        """The first stop id, by default the tokenizer's end token, closes a turn that was cut."""
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self._stop_ids = _unique(*stop_ids, *(() if stop_ids else (tokenizer.eos_token_id,)))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._stop_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        told = _in_words(messages, tools)
        return self._encoder.encode("".join(self._encoder.guard(message.content) for message in told))

    def ended(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) > 0 and token_ids[-1] in self._stop_ids

    def reply(self, reply: Reply, *, ended: bool) -> list[int]:
        closing = [] if ended else list(self._stop_ids[:1])
        return closing + self._encoder.encode(self._encoder.guard(_one_message(reply).content))

    def text(self, token_ids: Sequence[int]) -> str:
        return _decode_turn(self._tokenizer, token_ids, self._stop_ids)


def open_format(tokenizer: Tokenizer, eos_ids: Sequence[int] = ()) -> PromptFormat:
    """ChatFormat if the tokenizer has a chat template, else PlainFormat.

    `eos_ids` are the end tokens of the model's generation config.
    """
    if tokenizer.chat_template:
        return ChatFormat(tokenizer, eos_ids)
    return PlainFormat(tokenizer, _unique(tokenizer.eos_token_id, *eos_ids))


def _between_turns(tokenizer: Tokenizer, roles: tuple[str, ...]) -> list[str]:
    """What the template puts between the model's text, messages of `roles`, and the model's next text."""
    if not tokenizer.chat_template:
        raise PromptFormatError(f"the tokenizer of {tokenizer.name_or_path} has no chat template")
    num, shorter = len(roles), ("user", "assistant", *roles)
    gaps = _gaps(tokenizer, (*shorter, "assistant", *roles))
    before = _gaps(tokenizer, shorter)
    # gaps: before user 1 | to model 1 | to told 1 .. | to model 2 | to told 2 .. | to the model's next turn
    extends = len(gaps) == 2 * num + 4 and gaps[: num + 2] == before[: num + 2]
    if not extends or gaps[2 : num + 2] != gaps[num + 3 : -1]:
        raise PromptFormatError(
            f"the chat template of {tokenizer.name_or_path} drops or changes earlier turns as a "
            "conversation grows; give a template that only appends"
        )
    return gaps[num + 3 :]


def _gaps(tokenizer: Tokenizer, roles: tuple[str, ...]) -> list[str]:
    """The pieces of a rendered conversation around its messages, as far as they stand there in order."""
    marks = [f"<<{role}-{place}>>" for place, role in enumerate(roles)]
    conversation = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    gaps, rest = [], _render(tokenizer, conversation)
    for mark in marks:
        gap, found, tail = rest.partition(mark)
        if not found:
            break
        gaps.append(gap)
        rest = tail
    return [*gaps, rest]


def _has_tools(tokenizer: Tokenizer) -> bool:
    """Whether the template tells of tools, of their results, and of calls in the form that is read here."""
    call = _as_told(_PROBE_CALL.name, _PROBE_CALL.arguments)
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<<result>>"},
    ]
    try:
        rendered = _render(tokenizer, conversation, [_PROBE])
        without = _render(tokenizer, conversation)
        _between_turns(tokenizer, ("tool",))
    except PromptFormatError:
        return False
    told = "A probe." in rendered and "<<result>>" in rendered
    return told and read_calls(without) == [_PROBE_CALL]


def _render(
    tokenizer: Tokenizer, conversation: Sequence[Mapping[str, Any]], tools: Iterable[ToolSchema] = ()
) -> str:
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in conversation],
            list(tools) or None,
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # a template may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise PromptFormatError(
            f"the chat template of {tokenizer.name_or_path} cannot render a conversation: {reason}"
        ) from error


def _as_told(name: str, arguments: object) -> dict[str, Any]:
    """A call as chat templates take it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _guarded(value: object, guard: Callable[[str], str]) -> object:
    """What a call is given, with `guard` done to every text in it."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, list):
        return [_guarded(each, guard) for each in value]
    if isinstance(value, dict):
        return {guard(name): _guarded(each, guard) for name, each in value.items()}
    return value


def _in_words(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[Message]:
    """The conversation where nothing but words can be told: tools, calls and results as texts.

    Tools stand in the system message, or in the first one if there is none; calls in the assistant's own
    text; what a model is told together with a tool's result is one message of the user's, as in a reply.
    """
    told: list[Message] = []
    for speaks, group in groupby(messages, key=lambda message: message.role == "assistant"):
        said = list(group)
        if speaks:
            told += [_with_calls_in_words(message) for message in said]
        else:
            told += [_one_message(tuple(said))] if any(m.role == "tool" for m in said) else said
    return _with_tools_in_words(told, tools) if tools else told


def _with_calls_in_words(message: Message) -> Message:
    parts = [message.content, write_calls(message.tool_calls)]
    return Message(message.role, "\n".join(part for part in parts if part))


def _with_tools_in_words(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[Message]:
    first, *others = messages
    told = [first.content, describe_tools(tools)]
    if first.role != "system":
        told.reverse()
    return [Message(first.role, "\n\n".join(told)), *others]


def _one_message(reply: Reply) -> Message:
    """The reply as one message of the user's, results of tools told in words."""
    if isinstance(reply, str):
        return Message("user", reply)
    told = (describe_result(m.content) if m.role == "tool" else m.content for m in reply)
    return Message("user", "\n".join(told))


def _decode_turn(tokenizer: Tokenizer, token_ids: Sequence[int], stop_ids: tuple[int, ...]) -> str:
    said = list(token_ids)
    if said and said[-1] in stop_ids:
        said.pop()
    return tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _unique(*token_ids: int | None) -> tuple[int, ...]:
    return tuple(dict.fromkeys(i for i in token_ids if i is not None))

"""Text to token ids and back, at the boundaries of turns.

Token in, token out: a text is tokenised once, when it enters the context, and the ids already there
are never tokenised again. A context is

    open(messages)   then per turn   [sampled ids] [reply ids]

where the reply ids close the model's turn, hold what the environment said, and open the next turn of
the model. For a chat model they are taken from its own template, by rendering marked conversations and
cutting out what stands between the marks; so the template need not be known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rollout.environment import Message
from rollout.errors import UserError

_MARKS = ("<<user-1>>", "<<model-1>>", "<<user-2>>", "<<model-2>>", "<<user-3>>")


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
        conversation: list[dict[str, str]],
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

    def open(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the opening, after which the model speaks."""

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether these sampled ids close the model's turn as the format does."""

    def reply(self, text: str, *, ended: bool) -> list[int]:
        """Ids to append after a turn of the model, so that it hears `text` and speaks again.

        `ended` says that the turn's closing token was sampled; if not, it is put in.
        """

    def text(self, token_ids: Sequence[int]) -> str:
        """What the model said, without the token that ended its turn."""


class ChatFormat:
    """The format of a model with a chat template."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int] = ()) -> None:
        """`eos_ids` are further end tokens, those of the model's generation config."""
        self._tokenizer = tokenizer
        self._before_user, self._after_user = _between_turns(tokenizer)
        closing = _encode(tokenizer, self._before_user)
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

    def open(self, messages: Sequence[Message]) -> list[int]:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        return _encode(self._tokenizer, _render(self._tokenizer, conversation))

    def ended(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) > 0 and token_ids[-1] == self._end_id

    def reply(self, text: str, *, ended: bool) -> list[int]:
        ids = _encode(self._tokenizer, self._before_user + text + self._after_user)
        return ids[self._num_closing :] if ended else ids

    def text(self, token_ids: Sequence[int]) -> str:
        return _decode_turn(self._tokenizer, token_ids, self._stop_ids)


class PlainFormat:
    """Raw text, for a model without a chat template: messages and replies follow one another."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int] = ()) -> None:
        """The first stop id, by default the tokenizer's end token, closes a turn that was cut."""
        self._tokenizer = tokenizer
        self._stop_ids = _unique(*stop_ids, *(() if stop_ids else (tokenizer.eos_token_id,)))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._stop_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    def open(self, messages: Sequence[Message]) -> list[int]:
        return _encode(self._tokenizer, "".join(message.content for message in messages))

    def ended(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) > 0 and token_ids[-1] in self._stop_ids

    def reply(self, text: str, *, ended: bool) -> list[int]:
        closing = [] if ended else list(self._stop_ids[:1])
        return closing + _encode(self._tokenizer, text)

    def text(self, token_ids: Sequence[int]) -> str:
        return _decode_turn(self._tokenizer, token_ids, self._stop_ids)


def open_format(tokenizer: Tokenizer, eos_ids: Sequence[int] = ()) -> PromptFormat:
    """ChatFormat if the tokenizer has a chat template, else PlainFormat.

    `eos_ids` are the end tokens of the model's generation config.
    """
    if tokenizer.chat_template:
        return ChatFormat(tokenizer, eos_ids)
    return PlainFormat(tokenizer, _unique(tokenizer.eos_token_id, *eos_ids))


def _between_turns(tokenizer: Tokenizer) -> tuple[str, str]:
    """What the template puts from the model's text to the user's, and from there to the model's."""
    if not tokenizer.chat_template:
        raise PromptFormatError(f"the tokenizer of {tokenizer.name_or_path} has no chat template")
    conversation = [
        {"role": "assistant" if place % 2 else "user", "content": mark} for place, mark in enumerate(_MARKS)
    ]
    gaps = _gaps(_render(tokenizer, conversation))
    shorter = _gaps(_render(tokenizer, conversation[:3]))
    # gaps: before user 1 | to model 1 | to user 2 | to model 2 | to user 3 | to the model's next turn
    extends = len(gaps) == len(_MARKS) + 1 and gaps[:3] == shorter[:3] and gaps[2] == gaps[4]
    if not extends:
        raise PromptFormatError(
            f"the chat template of {tokenizer.name_or_path} drops or changes earlier turns as a "
            "conversation grows; give a template that only appends"
        )
    return gaps[4], gaps[5]


def _gaps(rendered: str) -> list[str]:
    """The pieces of `rendered` around the marks, as far as they stand there in order."""
    gaps, rest = [], rendered
    for mark in _MARKS:
        gap, found, tail = rest.partition(mark)
        if not found:
            break
        gaps.append(gap)
        rest = tail
    return [*gaps, rest]


def _render(tokenizer: Tokenizer, conversation: list[dict[str, str]]) -> str:
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise PromptFormatError(
            f"the chat template of {tokenizer.name_or_path} cannot render a conversation: {reason}"
        ) from error


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _decode_turn(tokenizer: Tokenizer, token_ids: Sequence[int], stop_ids: tuple[int, ...]) -> str:
    said = list(token_ids)
    if said and said[-1] in stop_ids:
        said.pop()
    return tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _unique(*token_ids: int | None) -> tuple[int, ...]:
    return tuple(dict.fromkeys(i for i in token_ids if i is not None))

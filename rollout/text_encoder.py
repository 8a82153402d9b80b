"""Text to token ids, such that a text never becomes a token that controls the conversation.

A tokenizer turns the text of a special token into that token wherever it stands, so a tool that prints
`<|im_end|>` would end its own message. `guard` marks such places in what others wrote; the text is cut
there before it is tokenised. The ids spell the same text, in other tokens. What the chat template itself
writes is not guarded.
"""

from __future__ import annotations

import re
from typing import Protocol

_CUT = "\ue000\ue001\ue000"
"""Private-use characters that no tokenizer sees and no template looks at."""


class Vocabulary(Protocol):
    """What is used of a transformers tokenizer here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def get_added_vocab(self) -> dict[str, int]: ...


class TextEncoder:
    """Of one tokenizer."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        # One character cannot be cut; only a task's own tiny alphabet has such tokens.
        special = [text for text in tokenizer.get_added_vocab() if len(text) > 1]
        pattern = "|".join(map(re.escape, special))
        self._begins_special = re.compile(f"(?={pattern})(.)", re.DOTALL) if special else None

    def guard(self, text: str) -> str:
        """The text with a mark inside every special token's text, to be passed on to `encode`."""
        if self._begins_special is None:
            return text
        return self._begins_special.sub(rf"\1{_CUT}", text.replace(_CUT, ""))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with such marks; they themselves become nothing."""
        return [
            token_id
            for piece in text.split(_CUT)
            for token_id in self._tokenizer.encode(piece, add_special_tokens=False)
        ]

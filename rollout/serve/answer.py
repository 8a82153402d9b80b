"""What a client reads of the tokens a model sampled: text and calls, at once or as they come.

Tokens keep stop strings and the calls' own form; the text that is given out ends ahead of the first stop
string, and ahead of calls that can be read. A stream gives out only what will stand: text that may still
turn out to begin a stop string or a call is held back, and so is part of a character.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from rollout.prompt_format import PromptFormat
from rollout.serve.told import Said
from rollout.tools.calls import CALL_BEGINS, split_calls

_PART_OF_A_CHARACTER = "�"


class Answer:
    """Of one turn."""

    def __init__(self, speech: PromptFormat, stop_strings: Sequence[str], *, reads_calls: bool) -> None:
        self._speech = speech
        self._stops = tuple(stop_strings)
        self._reads_calls = reads_calls
        self._seen = array("i")
        self._first = self._read = 0
        """Tokens [first, read) are decoded again with what follows them, as text depends on its
        neighbours."""
        self._text = ""
        self._given = ""

    def push(self, token_ids: array[int]) -> str:
        """What of the text is sure, now that the turn has these tokens, and was not given out yet."""
        if len(token_ids) <= len(self._seen):
            return ""
        self._decode(token_ids, last=False)
        return self._give(self._sure())

    def end(self, token_ids: array[int]) -> tuple[str, Said]:
        """The rest of the text, and the whole turn. Raises ValueError if its tokens are not those seen
        before."""
        if token_ids[: len(self._seen)] != self._seen:
            raise ValueError("tokens that had been given out were sampled again, and came out otherwise")
        self._decode(token_ids, last=True)
        text = self._text[: self._first_stop()]
        content, calls = split_calls(text) if self._reads_calls else (text, [])
        return self._give(content), Said(token_ids, content, tuple(calls))

    def _decode(self, token_ids: array[int], *, last: bool) -> None:
        self._seen = token_ids
        before = self._speech.text(token_ids[self._first : self._read])
        after = self._speech.text(token_ids[self._first :])
        if last or (len(after) > len(before) and not after.endswith(_PART_OF_A_CHARACTER)):
            self._text += after[len(before) :]
            self._first, self._read = self._read, len(token_ids)

    def _sure(self) -> str:
        """The text up to where a stop string or a call begins, or may begin."""
        stop, call = self._first_stop(), self._text.find(CALL_BEGINS) if self._reads_calls else -1
        if call >= 0 or stop < len(self._text):
            return self._text[: min(stop, call) if call >= 0 else stop]
        markers = (*self._stops, CALL_BEGINS) if self._reads_calls else self._stops
        return self._text[: len(self._text) - max((_overlap(self._text, m) for m in markers), default=0)]

    def _first_stop(self) -> int:
        """Where the text ends for the client."""
        found = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        return min(found, default=len(self._text))

    def _give(self, text: str) -> str:
        rest, self._given = text[len(self._given) :], text
        return rest


def _overlap(text: str, marker: str) -> int:
    """Characters at the end of `text` that may begin `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)

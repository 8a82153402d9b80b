"""When a turn's generation ends: a stop id, a stop string, or max_tokens.

Stop strings are looked for in the decoded text of the last tokens, so one may span tokens, attempts and the
border between prefill and decode.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

from engines.errors import RequestRefused
from engines.types import FinishReason, SamplingParams


class Decoder(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, token_ids: list[int]) -> str: ...


class IdsOnly:
    """The decoder of engines that know no text; a turn with stop strings is not for them."""

    def decode(self, token_ids: list[int]) -> str:
        raise RequestRefused("paced engines know token ids and no text; leave sampling.stop_strings empty")


class StopCondition:
    """Watches one turn's output tokens, those of earlier attempts included."""

    def __init__(self, params: SamplingParams, earlier_ids: Sequence[int], decoder: Decoder) -> None:
        self._params = params
        self._stop_ids = frozenset(params.stop_ids)
        self._output_ids = array("i", earlier_ids)
        self._decoder = decoder
        # A token may hold part of a character, so a stop string may take more tokens than characters.
        self._window = 4 * max(map(len, params.stop_strings), default=0)

    def push(self, token_id: int) -> FinishReason | None:
        """Take the next output token; why the turn ends with it, or None."""
        self._output_ids.append(token_id)
        if token_id in self._stop_ids:
            return FinishReason.STOP_ID
        if self._window:
            text = self._decoder.decode(list(self._output_ids[-self._window :]))
            if any(stop in text for stop in self._params.stop_strings):
                return FinishReason.STOP_STRING
        if len(self._output_ids) >= self._params.max_tokens:
            return FinishReason.LENGTH
        return None

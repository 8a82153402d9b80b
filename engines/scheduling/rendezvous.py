"""Where the two engines of a turn meet: only a turn that has both can have a read side.

Prefill and decode engines are chosen in fetches of their own (DualPath, arXiv 2602.21548, section 6.1, which
leaves open how they meet). Whichever comes second completes the pair.
"""

from __future__ import annotations

from engines.scheduling.engine_choice import EngineChoice, EnginePair
from engines.types import RequestId


class Rendezvous:
    """Turns with one engine of two."""

    def __init__(self) -> None:
        self._prefill: dict[RequestId, EngineChoice] = {}
        self._decode: dict[RequestId, EngineChoice] = {}

    def __len__(self) -> int:
        return len(self._prefill) + len(self._decode)

    def prefill_chosen(self, choice: EngineChoice) -> EnginePair | None:
        """The pair, if the turn has its decode engine already."""
        decode = self._decode.pop(choice.turn.request_id, None)
        if decode is None:
            self._prefill[choice.turn.request_id] = choice
            return None
        return EnginePair(choice.turn, choice, decode)

    def decode_chosen(self, choice: EngineChoice) -> EnginePair | None:
        """The pair, if the turn has its prefill engine already."""
        prefill = self._prefill.pop(choice.turn.request_id, None)
        if prefill is None:
            self._decode[choice.turn.request_id] = choice
            return None
        return EnginePair(choice.turn, prefill, choice)

    def withdraw(self, request_id: RequestId) -> None:
        """The turn waits for no engine any more; nothing happens if it did not."""
        self._prefill.pop(request_id, None)
        self._decode.pop(request_id, None)

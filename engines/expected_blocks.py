"""Which decode engine has said of which generated blocks that it persists them.

So that nobody waits for the blocks of an engine that is gone. What is stored and pending is the index's
business (kvstore.prefix_index).
"""

from __future__ import annotations

from collections.abc import Iterable

from engines.types import EngineId
from kvstore.keys import BlockKey


class ExpectedBlocks:
    """One per scheduler."""

    def __init__(self) -> None:
        self._makers: dict[BlockKey, list[EngineId]] = {}

    def __len__(self) -> int:
        """Blocks that somebody persists."""
        return len(self._makers)

    def add(self, engine_id: EngineId, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            self._makers.setdefault(key, []).append(engine_id)

    def stored(self, keys: Iterable[BlockKey]) -> None:
        """They are stored: nobody's persist of them matters any more."""
        for key in keys:
            self._makers.pop(key, None)

    def failed(self, keys: Iterable[BlockKey]) -> None:
        """One persist of each has failed."""
        for key in keys:
            makers = self._makers.get(key)
            if makers is None:
                continue
            makers.pop()
            if not makers:
                del self._makers[key]

    def clear(self) -> None:
        self._makers.clear()

    def take_from(self, engine_id: EngineId) -> list[BlockKey]:
        """The engine persists nothing more: its blocks, each as often as it was to be persisted."""
        keys = [key for key, makers in self._makers.items() for maker in makers if maker == engine_id]
        for key in dict.fromkeys(keys):
            others = [maker for maker in self._makers[key] if maker != engine_id]
            if others:
                self._makers[key] = others
            else:
                del self._makers[key]
        return keys

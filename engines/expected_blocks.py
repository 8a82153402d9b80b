"""Blocks that somebody is making: the index knows that they are pending, and here is who makes them.

So that nobody waits for the blocks of an engine that is gone. Prompt blocks of a placed turn have no maker
here: they are written in its loan (engines.loan).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engines.types import AnnouncedBlock, EngineId
from kvstore.keys import BlockKey, WeightsId
from kvstore.prefix_index import PrefixIndex


class ExpectedBlocks:
    """One per scheduler. All that is pending in the index passes through here."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._makers: dict[BlockKey, list[EngineId]] = {}

    def expect(self, keys: Sequence[BlockKey], weights_id: WeightsId, maker: EngineId | None = None) -> None:
        """These blocks are being made; `maker` persists them."""
        self._index.expect(keys, weights_id)
        if maker is not None:
            for key in keys:
                self._makers.setdefault(key, []).append(maker)

    def stored(self, blocks: Iterable[AnnouncedBlock], weights_id: WeightsId) -> None:
        """These are stored: nobody's persist of them matters any more."""
        for block in blocks:
            self._index.announce(block.key, block.location, weights_id, block.parent)
            self._makers.pop(block.key, None)

    def failed(self, keys: Sequence[BlockKey]) -> None:
        """One persist of each has failed."""
        self._index.cancel(keys)
        for key in keys:
            makers = self._makers.get(key)
            if makers is None:
                continue
            makers.pop()
            if not makers:
                del self._makers[key]

    def forget(self, keys: Sequence[BlockKey]) -> None:
        """Nobody will announce what became of these prompt blocks."""
        self._index.cancel(keys)

    def forget_engine(self, engine_id: EngineId) -> list[BlockKey]:
        """The engine persists nothing more: its blocks, each as often as it was to be persisted."""
        keys = [key for key, makers in self._makers.items() for maker in makers if maker == engine_id]
        for key in dict.fromkeys(keys):
            others = [maker for maker in self._makers[key] if maker != engine_id]
            if others:
                self._makers[key] = others
            else:
                del self._makers[key]
        self._index.cancel(keys)
        return keys

    def drop_weights_except(self, *weights_ids: WeightsId) -> None:
        """What was keyed with other weights is never hit again."""
        self._index.drop_weights_except(*weights_ids)
        self._makers.clear()

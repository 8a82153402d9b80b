"""What a node has read into which slot of its staging memory, so that it can be found there and verified."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from engines.read_messages import BlockLoad
from engines.types import SlotId
from kvstore.checksum import layer_checksums
from kvstore.keys import BlockKey
from kvstore.staging import StagingMemory
from kvstore.store import BlockReadResult, ReadStatus


@dataclass(frozen=True, slots=True)
class _Content:
    key: BlockKey
    layer_checksums: bytes


class SlotContents:
    """One per node. `check` may run in any thread, the rest on the node's event loop."""

    def __init__(self, staging: StagingMemory) -> None:
        self._staging = staging
        self._contents: dict[SlotId, _Content] = {}

    def forget(self, slot: SlotId) -> None:
        """Something else is about to be read into the slot."""
        self._contents.pop(slot, None)

    def remember(self, load: BlockLoad, result: BlockReadResult) -> None:
        """The block was read into its slot and verified there."""
        self._contents[load.slot] = _Content(load.key, result.layer_checksums)

    def check(self, loads: Sequence[BlockLoad], deadline_s: float) -> list[BlockReadResult]:
        """Are the blocks still in their slots, as they were when they were read?

        What the deadline cuts off is not known to be there.
        """
        end_s = time.monotonic() + deadline_s
        return [
            self._check(load) if time.monotonic() < end_s else BlockReadResult(ReadStatus.MISSING)
            for load in loads
        ]

    def _check(self, load: BlockLoad) -> BlockReadResult:
        content = self._contents.get(load.slot)
        if content is None or content.key != load.key:
            return BlockReadResult(ReadStatus.MISSING)
        if layer_checksums(self._staging.layout, self._staging.slot(load.slot)) != content.layer_checksums:
            return BlockReadResult(ReadStatus.CORRUPT)
        return BlockReadResult(ReadStatus.OK, content.layer_checksums)

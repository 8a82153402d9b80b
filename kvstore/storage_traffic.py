"""A node's traffic manager: the one way to its store, which counts every byte and charges the storage NIC.

It decides neither what is read nor when. A block is charged with its payload: what a record has besides, a
header page, is a large part of it only where a run scales blocks down, and no NIC would see it there.

Without a NIC (real hardware, or no limit) it only counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.layout import BlockLayout
from kvstore.limiter import Lane, Nic, carry
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockStore, BlockWrite, ReadStatus
from kvstore.traffic import TrafficClass
from kvstore.traffic_ledger import Hop, TrafficLedger

_ARRIVED = (ReadStatus.OK, ReadStatus.CORRUPT)


@dataclass(frozen=True, slots=True)
class StorageTraffic:
    """A BlockStore whose blocks pass a storage NIC of limited rate."""

    store: BlockStore
    layout: BlockLayout
    ledger: TrafficLedger
    snic: Nic | None

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        """As BlockStore; a block that the NIC would bring after the deadline is TIMED_OUT, its slot settled.

        Such a block costs the NIC nothing, so its turn is free to have it read elsewhere.
        """
        since_s = time.monotonic()
        results = self.store.read(reads, deadline_s)
        arrived = [index for index, result in enumerate(results) if result.status in _ARRIVED]
        self._count(Hop.STORAGE_READ, len(arrived))
        through = self._pass(
            len(arrived), None if self.snic is None else self.snic.inbound, since_s, since_s + deadline_s
        )
        for index in arrived[through:]:
            results[index] = BlockReadResult(ReadStatus.TIMED_OUT, settled=_settled())
        return results

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        """As BlockStore; blocks pass the NIC first, and those that it would carry too late are not stored."""
        since_s = time.monotonic()
        end_s = since_s + deadline_s
        through = self._pass(len(writes), None if self.snic is None else self.snic.outbound, since_s, end_s)
        locations = self.store.write(writes[:through], end_s - time.monotonic()) if through else []
        self._count(Hop.STORAGE_WRITE, sum(location is not None for location in locations))
        return [*locations, *[None] * (len(writes) - through)]

    def put(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        """As `write`, but past the NIC and not counted: what is in the store before a run begins."""
        return self.store.write(writes, deadline_s)

    def close(self) -> None:
        self.store.close()

    def _count(self, hop: Hop, num_blocks: int) -> None:
        self.ledger.count(hop, TrafficClass.KV, num_blocks * self.layout.full_block_bytes)

    def _pass(self, num_blocks: int, lane: Lane | None, since_s: float, end_s: float) -> int:
        """Wait until the NIC has carried the blocks; how many it could by `end_s`."""
        if lane is None or not num_blocks:
            return num_blocks
        nbytes = num_blocks * self.layout.full_block_bytes
        carried = carry([lane], nbytes, TrafficClass.KV, since_s=since_s, end_s=end_s)
        return carried // self.layout.full_block_bytes


def _settled() -> threading.Event:
    """Of a read that no longer touches its slot."""
    event = threading.Event()
    event.set()
    return event

"""How many bytes moved, by hop and class: what every data path of a node or an engine writes into.

It only counts. Bytes are counted when they have moved, not when they were asked for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from kvstore.traffic import TrafficClass


class Hop(StrEnum):
    """Between which two places bytes moved."""

    STORAGE_READ = "storage_read"
    """Into staging memory, through the storage NIC."""
    STORAGE_WRITE = "storage_write"
    HOST_TO_DEVICE = "host_to_device"
    DEVICE_TO_HOST = "device_to_host"
    ENGINE_TO_ENGINE = "engine_to_engine"
    """To or from another node's staging memory, through the compute NIC."""
    COLLECTIVE = "collective"
    """Among the engines of a group, through the compute NIC."""


STORAGE_HOPS = (Hop.STORAGE_READ, Hop.STORAGE_WRITE)
ENGINE_HOPS = (Hop.HOST_TO_DEVICE, Hop.DEVICE_TO_HOST, Hop.ENGINE_TO_ENGINE, Hop.COLLECTIVE)


class TrafficLedger:
    """Bytes by hop and class since the start. Thread-safe."""

    def __init__(self) -> None:
        self._moved: Counter[tuple[Hop, TrafficClass]] = Counter()
        self._lock = threading.Lock()

    def count(self, hop: Hop, traffic_class: TrafficClass, nbytes: int) -> None:
        with self._lock:
            self._moved[hop, traffic_class] += nbytes

    def moved(self, hop: Hop, traffic_class: TrafficClass) -> int:
        return self._moved[hop, traffic_class]

    def by_hop(self, hops: Iterable[Hop]) -> dict[str, int]:
        """Bytes of each of `hops`, all classes."""
        return {hop.value: sum(self._moved[hop, each] for each in TrafficClass) for hop in hops}

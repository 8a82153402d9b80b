"""One long turn's blocks in the staging memories of two nodes, to see what moving them costs.

What is real: the lists that a prefill feed makes, layer by layer, and who moves them. What is not: nothing
computes between the layers, HBM is host memory, and both nodes may be one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engines.model.runner import BatchShape
from engines.prefill_feed import FeedRow, PrefillFeed
from engines.traffic_manager import TrafficManager
from kvstore.checksum import layer_checksums
from kvstore.staging import StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle, TransferList, Transport

_DEADLINE_S = 60.0


class OneTurn:
    """A hit of `num_hit` blocks that lie in both memories, in scattered slots, and `new_tokens` after it."""

    def __init__(self, own: StagingMemory, decode: StagingMemory, num_hit: int, new_tokens: int) -> None:
        random = np.random.default_rng(0)
        self.layout, self.own, self.decode = own.layout, own, decode
        self.num_hit = num_hit
        tokens = self.layout.block_tokens
        self.shape = BatchShape((num_hit * tokens,), (new_tokens,))
        self.num_blocks = self.layout.num_blocks(self.shape.columns)
        self.own_slots: list[int] = random.permutation(own.num_slots)[:num_hit].tolist()
        self.decode_slots: list[int] = random.permutation(decode.num_slots)[: self.num_blocks].tolist()
        self.sums: list[bytes] = []
        for here, there in zip(self.own_slots, self.decode_slots[:num_hit], strict=True):
            own.slot(here)[:] = random.integers(0, 256, self.layout.slot_bytes, np.uint8)
            decode.slot(there)[:] = own.slot(here)
            self.sums.append(layer_checksums(self.layout, own.slot(here)))
        self._buffers = [
            torch.zeros((1, self.shape.columns, self.layout.token_bytes), dtype=torch.uint8) for _ in range(2)
        ]

    def feed(self, transport: Transport, region: RegionHandle, num_own: int) -> None:
        """Load, send and check every layer; `num_own` hit blocks lie on the prefill side, the others not."""
        traffic = TrafficManager(self.own, transport, torch.uint8, torch.device("cpu"))
        slots = (*self.own_slots[:num_own], *[None] * (self.num_hit - num_own))
        row = FeedRow(slots, tuple(self.sums), tuple(self.decode_slots), region, hit_sent=False)
        feed = PrefillFeed(traffic, self._buffers, self.shape, [row], _DEADLINE_S)
        try:
            for layer in range(self.layout.num_layers):
                feed.load(layer)
                feed.store(layer)
        finally:
            feed.finish()
        feed.new_checksums(0)


@dataclass(frozen=True, slots=True)
class Call:
    """What a prefill engine asked of its transport at once."""

    verb: str
    """read or write."""
    lists: tuple[TransferList, ...]

    @property
    def nbytes(self) -> int:
        return sum(moves.nbytes for moves in self.lists)

    def make(self, transport: Transport, region: RegionHandle) -> None:
        """Ask the same of `transport`."""
        getattr(transport, self.verb)(region, self.lists, TrafficClass.KV, _DEADLINE_S)


class RecordingTransport:
    """A Transport that keeps what it is asked for, and has `transport` do it."""

    def __init__(self, transport: Transport) -> None:
        self.calls: list[Call] = []
        self._transport = transport

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self.calls.append(Call("read", tuple(lists)))
        self._transport.read(region, lists, traffic_class, deadline_s)

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self.calls.append(Call("write", tuple(lists)))
        self._transport.write(region, lists, traffic_class, deadline_s)

    def close(self) -> None:
        self._transport.close()

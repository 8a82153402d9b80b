"""Copies between an engine's HBM and its node's staging memory that go through the engine's compute NIC.

The NIC reads or writes the node's memory as it would another node's, and HBM by GPUDirect RDMA, so that the
fabric's traffic classes hold for these copies too (DualPath, arXiv 2602.21548, section 5). It costs both
directions of the NIC what a copy engine costs none of. On a GPU that needs nvidia-peermem or dma-buf.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from kvstore.memory_row import row_of
from kvstore.traffic import TrafficClass
from kvstore.transport import Bytes, Offsets, RegionHandle, TransferList, Transport

_MAX_ROWS = 4
"""Storages whose registration is kept, and which are kept alive for it: a pool, or the buffers that layers
take turns in."""


class Loopback:
    """One engine's copies. Its threads may call at once."""

    def __init__(self, transport: Transport, region: RegionHandle) -> None:
        """`region`: the own node's staging memory."""
        self._transport = transport
        self._region = region
        self._rows: OrderedDict[int, tuple[torch.UntypedStorage, Bytes]] = OrderedDict()

    def load(self, tensor: Tensor, to: Offsets, places: Offsets, nbytes: int, deadline_s: float) -> None:
        """Copy pieces of `nbytes` from `places` in staging memory to byte offsets `to` of a tensor.

        Raises TransferError; what the pieces were copied to is then undefined.
        """
        self._transport.read(
            self._region, [self._moves(tensor, to, places, nbytes)], TrafficClass.KV, deadline_s
        )

    def store(self, tensor: Tensor, start: Offsets, places: Offsets, nbytes: int, deadline_s: float) -> None:
        """Copy pieces of `nbytes` from byte offsets `start` of a tensor to `places` in staging memory."""
        self._transport.write(
            self._region, [self._moves(tensor, start, places, nbytes)], TrafficClass.KV, deadline_s
        )

    def _moves(self, tensor: Tensor, offsets: Offsets, places: Offsets, nbytes: int) -> TransferList:
        assert tensor.is_contiguous(), tensor.stride()
        if tensor.device.type == "cuda":
            # A NIC does not wait for streams: what was given to this one before is done first.
            torch.cuda.current_stream(tensor.device).synchronize()
        first = int(tensor.storage_offset()) * tensor.itemsize
        row = self._row(tensor.untyped_storage())
        return TransferList(row, offsets + first, places, np.full(len(offsets), nbytes, np.int64))

    def _row(self, storage: torch.UntypedStorage) -> Bytes:
        """The storage's memory, the same array as the last time, as transports register arrays."""
        # While a storage is kept no other one is at its address.
        key = storage.data_ptr()
        kept = self._rows.pop(key, None) or (storage, row_of(storage))
        self._rows[key] = kept
        while len(self._rows) > _MAX_ROWS:
            self._rows.popitem(last=False)
        return kept[1]

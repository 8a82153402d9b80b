"""Copies between an engine's HBM and its node's staging memory that go through the engine's compute NIC.

The NIC reads or writes the node's memory as it would another node's, and HBM by GPUDirect RDMA, so that the
fabric's traffic classes hold for these copies too (DualPath, arXiv 2602.21548, section 5). It costs both
directions of the NIC what a copy engine costs none of. On a GPU that needs nvidia-peermem or dma-buf.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engines.tensor_rows import TensorRows
from kvstore.traffic import TrafficClass
from kvstore.transport import Offsets, RegionHandle, TransferList, Transport


class Loopback:
    """One engine's copies. Its threads may call at once."""

    def __init__(self, transport: Transport, region: RegionHandle, rows: TensorRows) -> None:
        """`region`: the own node's staging memory."""
        self._transport = transport
        self._region = region
        self._rows = rows

    def load(self, tensor: Tensor, to: Offsets, places: Offsets, nbytes: int, deadline_s: float) -> None:
        """Copy pieces of `nbytes` from `places` in staging memory to byte offsets `to` of a tensor.

        Raises TransferError; what the pieces were copied to is then undefined.
        """
        moves = self._moves(tensor, to, places, nbytes)
        self._transport.read(self._region, [moves], TrafficClass.KV, deadline_s)

    def store(self, tensor: Tensor, start: Offsets, places: Offsets, nbytes: int, deadline_s: float) -> None:
        """Copy pieces of `nbytes` from byte offsets `start` of a tensor to `places` in staging memory.

        Raises TransferError; what is at the places is then undefined.
        """
        moves = self._moves(tensor, start, places, nbytes)
        self._transport.write(self._region, [moves], TrafficClass.KV, deadline_s)

    def _moves(self, tensor: Tensor, offsets: Offsets, places: Offsets, nbytes: int) -> TransferList:
        if tensor.device.type == "cuda":
            # A NIC does not wait for streams: what was given to this one before is done first.
            torch.cuda.current_stream(tensor.device).synchronize()
        row, first = self._rows.place(tensor)
        return TransferList(row, first + offsets, places, np.full(len(offsets), nbytes, np.int64))

"""The Transport seam: one-sided reads and writes between registered memories.

A peer's memory is passive: whoever drives names both ends of every move, and the other side's
processor does nothing. Each list carries one traffic class and one deadline. Local ends are numpy
views of any host memory here; an RDMA transport registers them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvstore.errors import TransferError
from kvstore.traffic import TrafficClass

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RegionHandle:
    """Names a registered memory to peers; picklable. `incarnation` changes when its owner restarts."""

    node_id: str
    incarnation: str
    nbytes: int
    address: str
    """How the transport reaches it (shared memory: the owner's descriptor; TCP: address and port)."""


@dataclass(frozen=True, slots=True)
class TransferOp:
    """Move `local.nbytes` bytes between `local` and `remote_offset` of the remote region."""

    local: Bytes
    remote_offset: int


def require_inside(region: RegionHandle, ops: Sequence[TransferOp]) -> None:
    """Raise TransferError unless the remote end of every op lies in the region."""
    for op in ops:
        if op.remote_offset < 0 or op.remote_offset + op.local.nbytes > region.nbytes:
            raise TransferError(
                f"bytes [{op.remote_offset}, {op.remote_offset + op.local.nbytes}) are outside "
                f"region {region.incarnation} of {region.node_id}, which has {region.nbytes} bytes"
            )


class Transport(Protocol):
    """One-sided reads and writes. Thread-safe. Raises TransferError, the destination then undefined."""

    def read(
        self,
        region: RegionHandle,
        ops: Sequence[TransferOp],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        """Fill each op's `local` from the remote region; returns when all bytes are in place."""
        ...

    def write(
        self,
        region: RegionHandle,
        ops: Sequence[TransferOp],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        """Put each op's `local` into the remote region; returns when all bytes are visible there."""
        ...

    def close(self) -> None:
        """Unmap and disconnect everything. Idempotent."""
        ...

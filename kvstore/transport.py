"""The Transport seam: one-sided reads and writes between registered memories.

A peer's memory is passive: whoever drives names both ends of every move, and the other side's
processor does nothing. Each call carries one traffic class and one deadline. A list is columns of
numbers and no object per piece, as a layer of a long context is hundreds of small pieces. Local ends are
pieces of any host memory here; an RDMA transport registers it first.
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
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RegionHandle:
    """Names a registered memory to peers; picklable. `incarnation` changes when its owner restarts."""

    node_id: str
    incarnation: str
    nbytes: int
    address: str
    """How the transport reaches it (shared memory: the owner's descriptor; TCP: address and port)."""


@dataclass(frozen=True, slots=True, eq=False)
class TransferList:
    """Moves of `sizes[i]` bytes between `local_offsets[i]` of `memory` and `remote_offsets[i]` of a region.

    The columns are equally long, and pieces do not overlap where they go to.
    """

    memory: Bytes
    """One contiguous row of bytes that holds every local end."""
    local_offsets: Offsets
    remote_offsets: Offsets
    sizes: Offsets

    @classmethod
    def piece(cls, local: Bytes, remote_offset: int) -> TransferList:
        """All of `local`, as one piece."""
        places = np.array([[0], [remote_offset], [local.nbytes]], np.int64)
        return cls(local, *places)

    @classmethod
    def equal(
        cls, memory: Bytes, local_offsets: Offsets, remote_offsets: Offsets, nbytes: int
    ) -> TransferList:
        """Pieces of `nbytes` each."""
        return cls(memory, local_offsets, remote_offsets, np.full(len(local_offsets), nbytes, np.int64))

    def __len__(self) -> int:
        """Pieces."""
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        return int(self.sizes.sum())


def require_inside(region: RegionHandle, lists: Sequence[TransferList]) -> None:
    """Raise TransferError unless the remote end of every piece lies in the region."""
    for moves in lists:
        local, remote, sizes = moves.local_offsets, moves.remote_offsets, moves.sizes
        assert len(local) == len(remote) == len(sizes), (len(local), len(remote), len(sizes))
        if not len(sizes):
            continue
        # No sums: that of two large numbers may wrap round to a small one.
        assert min(sizes.min(), local.min()) >= 0, "a piece begins before its own memory, or has no size"
        assert (moves.memory.nbytes - sizes - local).min() >= 0, "a piece is outside its own memory"
        if remote.min() < 0 or (region.nbytes - sizes - remote).min() < 0:
            first = int(((remote < 0) | (remote > region.nbytes - sizes)).argmax())
            start, nbytes = int(remote[first]), int(sizes[first])
            raise TransferError(
                f"bytes [{start}, {start + nbytes}) are outside "
                f"region {region.incarnation} of {region.node_id}, which has {region.nbytes} bytes"
            )


class Transport(Protocol):
    """One-sided reads and writes. Thread-safe. Raises TransferError, the destination then undefined.

    After an error nothing of the call moves any more, unless it is a LateWrite.
    """

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        """Fill the local end of every piece from the remote region; returns when all bytes are in place."""
        ...

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        """Put the local end of every piece into the remote region; returns when all are visible there."""
        ...

    def close(self) -> None:
        """Unmap and disconnect everything. Idempotent."""
        ...

"""A tensor's memory as a row of bytes, which is how transports name local memory.

It asks a tensor for its address and knows nothing else of it, so any library's will do. Of memory on a GPU
the row is an address and a length that a NIC may use; this process must not touch what it shows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kvstore.transport import Bytes


class HasAddress(Protocol):
    """A torch storage or a contiguous torch tensor, for example."""

    def data_ptr(self) -> int: ...

    def nbytes(self) -> int: ...


class _Memory:
    """Tells numpy where the memory lies, and keeps its owner."""

    def __init__(self, owner: HasAddress) -> None:
        self.owner = owner
        self.__array_interface__: dict[str, Any] = {
            "data": (owner.data_ptr(), False),
            "shape": (owner.nbytes(),),
            "typestr": "|u1",
            "version": 3,
        }


def row_of(owner: HasAddress) -> Bytes:
    """All of `owner`'s memory, which lives as long as the row."""
    return np.asarray(_Memory(owner)) if owner.nbytes() else np.empty(0, np.uint8)

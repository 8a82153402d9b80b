"""The memory of an engine's tensors as rows of bytes, which transports take.

An RDMA transport registers a row once, for as long as the row lives. So whoever moves the same tensors many
times has them kept here meanwhile; of any other tensor the row is made, and registered, for one move.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from kvstore.memory_row import row_of
from kvstore.transport import Bytes


class TensorRows:
    """Rows of the storages that tensors lie in. Any thread may ask."""

    def __init__(self) -> None:
        self._kept: dict[int, Bytes] = {}
        """By address. A row keeps its storage, so that no other one can lie there."""

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """These will be moved often."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._kept.setdefault(storage.data_ptr(), row_of(storage))

    def let_go(self, tensors: Iterable[Tensor]) -> None:
        """These will not be moved any more."""
        for tensor in tensors:
            self._kept.pop(tensor.untyped_storage().data_ptr(), None)

    def place(self, tensor: Tensor) -> tuple[Bytes, int]:
        """The row of the tensor's storage, and the byte in it at which the tensor begins."""
        assert tensor.is_contiguous(), tensor.stride()
        storage = tensor.untyped_storage()
        row = self._kept.get(storage.data_ptr())
        if row is None:
            row = row_of(storage)
        return row, int(tensor.storage_offset()) * tensor.itemsize

"""A tensor's memory as a row of bytes."""

import ctypes
import gc
import weakref

from kvstore.memory_row import row_of


class Tensor:
    """Answers as torch's tensors and storages do."""

    def __init__(self, *values):
        self.memory = (ctypes.c_uint8 * len(values))(*values)

    def data_ptr(self):
        return ctypes.addressof(self.memory)

    def nbytes(self):
        return len(self.memory)


def test_a_row_shows_the_tensors_own_bytes():
    tensor = Tensor(1, 2, 3)
    row = row_of(tensor)
    row[1] = 9
    assert [*tensor.memory] == [1, 9, 3]


def test_a_row_keeps_the_tensor_alive_and_no_longer():
    tensor = Tensor(4, 5)
    row, gone = row_of(tensor), weakref.ref(tensor)
    part = row[1:]
    del tensor, row
    assert part[0] == 5
    del part
    gc.collect()
    assert gone() is None

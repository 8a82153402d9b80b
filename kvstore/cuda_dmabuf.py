"""Exports memory of an NVIDIA GPU as a dma-buf, by which a NIC's driver can reach it without nvidia-peermem.

Asks the CUDA driver that this process has loaded already; without one no memory is a GPU's. The driver
exports whole allocations, so what is told is the descriptor of one and where in it an address lies.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_DRIVER = "libcuda.so.1"
_MEMORY_TYPE = 2
"""CU_POINTER_ATTRIBUTE_MEMORY_TYPE."""
_DEVICE = 2
"""CU_MEMORYTYPE_DEVICE."""
_DMABUF_FD = 1
"""CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD."""


@dataclass(frozen=True, slots=True)
class Dmabuf:
    """An exported allocation. The caller closes `fd`."""

    fd: int | None
    """None: the driver gave none."""
    offset: int
    """Where in it the address lies, in bytes."""
    why_none: str


def export_dmabuf(address: int) -> Dmabuf | None:
    """The allocation of a GPU that `address` lies in; None if it is no memory of a GPU."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    kind = ctypes.c_uint()
    if driver.cuPointerGetAttribute(ctypes.byref(kind), _MEMORY_TYPE, ctypes.c_uint64(address)):
        return None
    if kind.value != _DEVICE:
        return None
    base, nbytes = ctypes.c_uint64(), ctypes.c_size_t()
    error = driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(nbytes), ctypes.c_uint64(address))
    if error:
        return Dmabuf(None, 0, f"cuMemGetAddressRange: error {error}")
    fd = ctypes.c_int()
    error = driver.cuMemGetHandleForAddressRange(
        ctypes.byref(fd), base, nbytes, _DMABUF_FD, ctypes.c_uint64(0)
    )
    if error:
        return Dmabuf(None, 0, f"cuMemGetHandleForAddressRange: error {error}")
    return Dmabuf(fd.value, address - base.value, "")

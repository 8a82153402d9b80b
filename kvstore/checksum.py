"""CRC32C of bytes in host memory: how this room tells that a block is what was written.

The sum is taken over numpy views without a copy. google_crc32c lets go of the GIL only for `bytes`, so a
larger view is handed to the library beneath it directly, and other threads run meanwhile. Sums of pieces
are combined into that of the whole, so whoever has summed the Layer Blocks need not read them again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import lru_cache

import google_crc32c

from kvstore.layout import BlockLayout
from kvstore.store import Bytes

GIL_RELEASE_BYTES = 64 << 10
"""From here on a sum takes longer than letting go of the GIL and taking it again."""

_POLYNOMIAL = 0x82F63B78
_BITS = 32

_Table = tuple[int, ...]


def _native() -> Callable[[int, int], int] | None:
    """CRC32C(address, bytes) of the library that google_crc32c links; None where it links none."""
    try:
        from google_crc32c import _crc32c

        function = ctypes.CDLL(_crc32c.__file__).crc32c_value
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return function


_native_checksum = _native()


def checksum(view: Bytes) -> int:
    """CRC32C of a contiguous view; the GIL is released where that pays."""
    if _native_checksum is None or view.nbytes < GIL_RELEASE_BYTES:
        return int(google_crc32c.value(view))
    assert view.flags.c_contiguous, view.strides
    return _native_checksum(view.__array_interface__["data"][0], view.nbytes)


def layer_checksums(layout: BlockLayout, data: Bytes, num_tokens: int | None = None) -> tuple[int, ...]:
    """CRC32C of the first `num_tokens` tokens (None: all) of each Layer Block of the block `data`."""
    tokens = layout.block_tokens if num_tokens is None else num_tokens
    nbytes = tokens * layout.token_bytes
    starts = (layout.layer_offset(layer) for layer in range(layout.num_layers))
    return tuple(checksum(data[start : start + nbytes]) for start in starts)


def combine(checksums: Iterable[int], nbytes: int) -> int:
    """CRC32C of pieces of `nbytes` each, back to back, from the CRC32C of every piece."""
    byte0, byte1, byte2, byte3 = _append_zeros(nbytes)
    crc = 0
    for piece in checksums:
        extended = byte0[crc & 255] ^ byte1[crc >> 8 & 255] ^ byte2[crc >> 16 & 255] ^ byte3[crc >> 24]
        crc = extended ^ piece
    return crc


@lru_cache(maxsize=16)
def _append_zeros(nbytes: int) -> tuple[_Table, _Table, _Table, _Table]:
    """What `nbytes` zeros do to a CRC: linear over GF(2), so a table for each byte of the CRC."""
    # The column of bit i is where one zero bit takes a CRC that is only bit i.
    power = [_POLYNOMIAL] + [1 << bit for bit in range(_BITS - 1)]
    columns = [1 << bit for bit in range(_BITS)]
    num_bits = 8 * nbytes
    while num_bits:
        if num_bits & 1:
            columns = [_apply(power, column) for column in columns]
        power = [_apply(power, column) for column in power]
        num_bits >>= 1
    tables = (tuple(_apply(columns, byte << shift) for byte in range(256)) for shift in (0, 8, 16, 24))
    return next(tables), next(tables), next(tables), next(tables)


def _apply(columns: list[int], vector: int) -> int:
    product = 0
    for column in columns:
        if vector & 1:
            product ^= column
        vector >>= 1
    return product

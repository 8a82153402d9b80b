"""CRC32C of bytes in host memory: how this room tells that a block is what was written.

The sum is taken over numpy views without a copy. google_crc32c lets go of the GIL only for `bytes`, so a
larger view is handed to the library beneath it directly, and other threads run meanwhile; a small one is
too, as its buffer costs more than its sum. Sums of pieces are combined into that of the whole, so whoever has
summed the Layer Blocks need not read them again.

    layer sums of a block   bytes: CRC32C of each Layer Block, 4 bytes each, little-endian (as in a record)
    columns of sums         uint32 [pieces, columns]
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import google_crc32c
import numpy as np
import numpy.typing as npt

from kvstore.layout import BlockLayout
from kvstore.store import Bytes

Sums = npt.NDArray[np.uint32]

GIL_RELEASE_BYTES = 64 << 10
"""From here on a sum takes longer than letting go of the GIL and taking it again."""

_POLYNOMIAL = 0x82F63B78
_BITS = 32
_SUM = np.dtype("<u4")

_Native = Callable[[int, int], int]
"""CRC32C(address, bytes)."""


def _native(library: type[ctypes.CDLL]) -> _Native | None:
    """That of the library that google_crc32c links; None where it links none."""
    try:
        from google_crc32c import _crc32c

        function = library(_crc32c.__file__).crc32c_value
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return function


_without_gil = _native(ctypes.CDLL)
_with_gil = _native(ctypes.PyDLL)


def checksum(view: Bytes) -> int:
    """CRC32C of a contiguous view; the GIL is released where that pays."""
    native = _without_gil if view.nbytes >= GIL_RELEASE_BYTES else _with_gil
    if native is None:
        return int(google_crc32c.value(view))
    assert view.flags.c_contiguous, view.strides
    return native(view.__array_interface__["data"][0], view.nbytes)


def checksums(memory: Bytes, offsets: Sequence[int], nbytes: int) -> Sums:
    """CRC32C of the `nbytes` bytes at each of `offsets`."""
    native = _without_gil if nbytes >= GIL_RELEASE_BYTES else _with_gil
    if not len(offsets):
        return np.zeros(0, np.uint32)
    assert 0 <= min(offsets) <= max(offsets) <= memory.nbytes - nbytes, (min(offsets), max(offsets), nbytes)
    if native is None:
        sums = [google_crc32c.value(memory[start : start + nbytes]) for start in offsets]
    else:
        assert memory.flags.c_contiguous, memory.strides
        base = memory.__array_interface__["data"][0]
        sums = [native(base + start, nbytes) for start in offsets]
    return np.array(sums, np.uint32)


def layer_checksums(layout: BlockLayout, data: Bytes, num_tokens: int | None = None) -> bytes:
    """Layer sums of the first `num_tokens` tokens (None: all) of the block that `data` begins with."""
    tokens = layout.block_tokens if num_tokens is None else num_tokens
    starts = range(0, layout.full_block_bytes, layout.layer_block_bytes)
    return checksums(data, starts, tokens * layout.token_bytes).astype(_SUM).tobytes()


def layer_sums(blocks: Sequence[bytes], num_layers: int) -> Sums:
    """[blocks, layers] of blocks' layer sums."""
    return np.frombuffer(b"".join(blocks), _SUM).reshape(len(blocks), num_layers).astype(np.uint32)


def block_checksums(layout: BlockLayout, blocks: Sequence[bytes]) -> Sums:
    """CRC32C of each Full Block, from the blocks' layer sums."""
    return combine_columns(layer_sums(blocks, layout.num_layers).T, layout.layer_block_bytes)


def damaged_blocks(
    layout: BlockLayout, memory: Bytes, offsets: Sequence[int], blocks: Sequence[bytes]
) -> list[int]:
    """Which of the Full Blocks at `offsets` of `memory` are not those of the layer sums `blocks`."""
    found = checksums(memory, offsets, layout.full_block_bytes)
    return np.flatnonzero(found != block_checksums(layout, blocks)).tolist()


def pack_sums(sums: Sums) -> bytes:
    """Layer sums of one block from [layers]."""
    return sums.astype(_SUM).tobytes()


def combine(sums: Iterable[int], nbytes: int) -> int:
    """CRC32C of pieces of `nbytes` each, back to back, from the CRC32C of every piece.

    For a single row of pieces; `combine_columns` is for many at once.
    """
    byte0, byte1, byte2, byte3 = _table_rows(nbytes)
    crc = 0
    for piece in sums:
        extended = byte0[crc & 255] ^ byte1[crc >> 8 & 255] ^ byte2[crc >> 16 & 255] ^ byte3[crc >> 24]
        crc = extended ^ piece
    return crc


def combine_columns(sums: Sums, nbytes: int) -> Sums:
    """In each column: CRC32C of its pieces of `nbytes` each, back to back from the first row to the last."""
    if not len(sums):
        return np.zeros(sums.shape[1], np.uint32)
    while len(sums) > 1:
        if len(sums) % 2:
            # The sum of no bytes at all is 0, and so it is with zeros appended: the pairs end evenly.
            sums = np.concatenate((np.zeros_like(sums[:1]), sums))
        first, second = sums[0::2], sums[1::2]
        byte0, byte1, byte2, byte3 = _tables(nbytes)
        extended = (
            byte0[first & 255] ^ byte1[first >> 8 & 255] ^ byte2[first >> 16 & 255] ^ byte3[first >> 24]
        )
        sums, nbytes = extended ^ second, 2 * nbytes
    whole: Sums = sums[0]
    return whole


@lru_cache(maxsize=256)
def _tables(nbytes: int) -> tuple[Sums, Sums, Sums, Sums]:
    """What `nbytes` zeros do to a CRC: linear over GF(2), so a table for each byte of the CRC."""
    columns = np.array(_append_zeros(nbytes), np.uint32)

    def table(first_bit: int) -> Sums:
        values = np.zeros(1, np.uint32)
        for bit in range(first_bit, first_bit + 8):
            values = np.concatenate((values, values ^ columns[bit]))
        return values

    return table(0), table(8), table(16), table(24)


@lru_cache(maxsize=16)
def _table_rows(nbytes: int) -> list[list[int]]:
    """The tables as Python's own numbers, which are quicker one by one."""
    return [table.tolist() for table in _tables(nbytes)]


@lru_cache(maxsize=1024)
def _append_zeros(nbytes: int) -> tuple[int, ...]:
    """Where `nbytes` zeros take a CRC that is only bit i, for each i."""
    if not nbytes:
        return tuple(1 << bit for bit in range(_BITS))
    if nbytes == 1:
        # One zero bit, eight times.
        one_bit = (_POLYNOMIAL, *(1 << bit for bit in range(_BITS - 1)))
        columns = one_bit
        for _ in range(7):
            columns = _after(columns, one_bit)
        return columns
    half = _append_zeros(nbytes // 2)
    whole = _after(half, half)
    return _after(whole, _append_zeros(1)) if nbytes % 2 else whole


def _after(first: tuple[int, ...], then: tuple[int, ...]) -> tuple[int, ...]:
    """Both, one after the other."""
    return tuple(_apply(then, column) for column in first)


def _apply(columns: tuple[int, ...], vector: int) -> int:
    product = 0
    for column in columns:
        if vector & 1:
            product ^= column
        vector >>= 1
    return product

"""Copies lists of small pieces between two memories with one native call for many of them.

Decides how a list is cut into portions, so that whoever has a deadline can look at the clock between them.
Small pieces of equal size are elements of a view whose element is as large as a piece and begins at every
byte, so numpy gathers and scatters them, through a copy of its own; it lets go of the GIL meanwhile. Large
ones go one by one, at once, which costs less than that copy. There the GIL is kept for a piece: who gives it
away for every few microseconds waits each time for other threads to give it back, far longer than that.

    offsets, sizes   int64 [pieces], in bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.transport import Bytes, Offsets

PORTION_BYTES = 256 << 10
"""Of small pieces, what is copied at once: it stays in the cache between gathering and scattering."""
LARGE_BYTES = 16 << 10
"""A piece of this size or more is copied by itself."""
_LARGE_PORTION_BYTES = 1 << 20


def copy_pieces(
    destination: Bytes, to_offsets: Offsets, source: Bytes, from_offsets: Offsets, sizes: Offsets
) -> Iterator[int]:
    """Copy each piece to its place; yields, before each portion, how many pieces are done.

    All pieces must lie inside their memories; those of the destination must not overlap.
    """
    num_done = 0
    for nbytes, members in _by_size(sizes):
        to, start = to_offsets[members], from_offsets[members]
        copying = _copy_large if nbytes >= LARGE_BYTES else _copy_small
        for num_copied in copying(destination, to, source, start, nbytes):
            yield num_done + num_copied
        num_done += len(to)


def copy_all(
    destination: Bytes, to_offsets: Offsets, source: Bytes, from_offsets: Offsets, sizes: Offsets
) -> None:
    """Copy each piece to its place, as copy_pieces does, with nobody looking at the clock."""
    for _ in copy_pieces(destination, to_offsets, source, from_offsets, sizes):
        pass


def merge_neighbours(offsets: Offsets, sizes: Offsets) -> tuple[Offsets, Offsets]:
    """The same bytes in the same order, with pieces that follow one another directly made one."""
    if len(offsets) < 2:
        return offsets, sizes
    begins = np.flatnonzero(offsets[1:] != offsets[:-1] + sizes[:-1]) + 1
    starts = np.concatenate((np.zeros(1, np.int64), begins))
    return offsets[starts], np.add.reduceat(sizes, starts)


def _by_size(sizes: Offsets) -> Iterator[tuple[int, slice | Offsets]]:
    """The sizes that occur, each with the pieces of that size."""
    if not len(sizes):
        return
    if (sizes == sizes[0]).all():
        yield int(sizes[0]), slice(None)
        return
    for nbytes in np.unique(sizes):
        yield int(nbytes), np.flatnonzero(sizes == nbytes)


def _copy_large(destination: Bytes, to: Offsets, source: Bytes, start: Offsets, nbytes: int) -> Iterator[int]:
    """Yields, before each portion, how many pieces are done."""
    # Arrays let go of the GIL, and for as long as this it is worth it.
    keeps_gil = nbytes < PORTION_BYTES
    into: Any = destination.data if keeps_gil else destination
    out_of = source.data if keeps_gil else source
    step = max(1, _LARGE_PORTION_BYTES // nbytes)
    for first in range(0, len(to), step):
        yield first
        part = slice(first, first + step)
        for there, here in zip(to[part].tolist(), start[part].tolist(), strict=True):
            into[there : there + nbytes] = out_of[here : here + nbytes]


def _copy_small(destination: Bytes, to: Offsets, source: Bytes, start: Offsets, nbytes: int) -> Iterator[int]:
    """Yields, before each portion, how many pieces are done."""
    step = max(1, PORTION_BYTES // max(nbytes, 1))
    for first in range(0, len(to), step):
        yield first
        if nbytes:
            _copy_equal(destination, to[first : first + step], source, start[first : first + step], nbytes)


def _copy_equal(destination: Bytes, to: Offsets, source: Bytes, start: Offsets, nbytes: int) -> None:
    to_row, from_row = _row(destination, to, nbytes), _row(source, start, nbytes)
    if to_row is not None and from_row is not None:
        np.copyto(to_row, from_row)
    elif to_row is not None:
        to_row.view(_void(nbytes))[:] = _windows(source, nbytes)[start]
    elif from_row is not None:
        _windows(destination, nbytes)[to] = from_row.view(_void(nbytes))
    else:
        _windows(destination, nbytes)[to] = _windows(source, nbytes)[start]


def _row(memory: Bytes, offsets: Offsets, nbytes: int) -> Bytes | None:
    """The pieces of `nbytes` as one, where they follow one another directly."""
    first, last, num_steps = int(offsets[0]), int(offsets[-1]), len(offsets) - 1
    if last - first != num_steps * nbytes:
        return None
    if num_steps > 1 and not (offsets[1:] - offsets[:-1] == nbytes).all():
        return None
    return memory[first : last + nbytes]


def _windows(memory: Bytes, nbytes: int) -> npt.NDArray[np.void]:
    """Element i is the `nbytes` bytes at byte i."""
    assert memory.flags.c_contiguous, memory.strides
    return np.ndarray((memory.nbytes - nbytes + 1,), _void(nbytes), memory.data, strides=(1,))


@lru_cache(maxsize=256)
def _void(nbytes: int) -> np.dtype[np.void]:
    return np.dtype((np.void, nbytes))

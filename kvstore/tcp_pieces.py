"""Sends and receives lists of pieces of a memory over a TCP channel, as one row of bytes.

Decides which pieces the kernel is told one by one, and which go through a buffer of one portion: to name a
piece costs as much as to copy DIRECT_BYTES.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvstore.pieces import copy_all, merge_neighbours
from kvstore.tcp_channel import TcpChannel
from kvstore.transport import Bytes, Offsets

DIRECT_BYTES = 8 << 10
PORTION_BYTES = 1 << 20
"""Bytes that are gathered before they are sent, or received before they are put in their places."""


def send_pieces(channel: TcpChannel, memory: Bytes, offsets: Offsets, sizes: Offsets, end_s: float) -> None:
    """Hand all bytes of the (non-empty) pieces to the kernel, in the order of the list."""
    offsets, sizes = merge_neighbours(offsets, sizes)
    if _are_large(sizes):
        channel.send(_views(memory, offsets, sizes), end_s)
        return
    for part in _portions(sizes):
        row, places = _row_for(sizes[part])
        copy_all(row, places, memory, offsets[part], sizes[part])
        channel.send([row.data], end_s)


def receive_pieces(
    channel: TcpChannel, memory: Bytes, offsets: Offsets, sizes: Offsets, end_s: float
) -> None:
    """Fill all (non-empty) pieces, in the order of the list."""
    offsets, sizes = merge_neighbours(offsets, sizes)
    if _are_large(sizes):
        channel.receive(_views(memory, offsets, sizes), end_s)
        return
    for part in _portions(sizes):
        row, places = _row_for(sizes[part])
        channel.receive([row.data], end_s)
        copy_all(memory, offsets[part], row, places, sizes[part])


def _are_large(sizes: Offsets) -> bool:
    return len(sizes) == 1 or bool(sizes.sum() >= DIRECT_BYTES * len(sizes))


def _views(memory: Bytes, offsets: Offsets, sizes: Offsets) -> list[memoryview]:
    data = memory.data
    return [data[a:b] for a, b in zip(offsets.tolist(), (offsets + sizes).tolist(), strict=True)]


def _portions(sizes: Offsets) -> Iterator[slice]:
    """Runs of pieces that together begin within PORTION_BYTES of the first one's begin."""
    starts, first = np.cumsum(sizes) - sizes, 0
    while first < len(sizes):
        end = int(np.searchsorted(starts, starts[first] + PORTION_BYTES))
        yield slice(first, end)
        first = end


def _row_for(sizes: Offsets) -> tuple[Bytes, Offsets]:
    """A row as long as all pieces together, and where each begins in it."""
    ends = np.cumsum(sizes)
    return np.empty(int(ends[-1]), np.uint8), ends - sizes

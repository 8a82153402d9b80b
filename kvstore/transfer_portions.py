"""Cuts the lists of a call into portions that a memory of fixed size can hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kvstore.transport import TransferList


def portions(lists: Sequence[TransferList], most_bytes: int) -> Iterator[list[TransferList]]:
    """The same moves in the same order, those of no bytes left out; `most_bytes` at most in a portion.

    A piece is cut only if it is larger than that.
    """
    portion: list[TransferList] = []
    room = most_bytes
    for moves in lists:
        moves = _cut(moves, most_bytes)
        ends, first = np.cumsum(moves.sizes), 0
        while first < len(moves):
            done = int(ends[first - 1]) if first else 0
            after = int(np.searchsorted(ends, done + room, side="right"))
            if after > first:
                part = slice(first, after)
                portion.append(
                    TransferList(
                        moves.memory, moves.local_offsets[part], moves.remote_offsets[part], moves.sizes[part]
                    )
                )
                room -= int(ends[after - 1]) - done
                first = after
            if first < len(moves):
                yield portion
                portion, room = [], most_bytes
    if portion:
        yield portion


def _cut(moves: TransferList, most_bytes: int) -> TransferList:
    """No piece of it is empty or larger than `most_bytes`."""
    sizes = moves.sizes
    if len(sizes) and sizes.min() > 0 and sizes.max() <= most_bytes:
        return moves
    num_parts = -(-sizes // most_bytes)
    of = np.repeat(np.arange(len(sizes)), num_parts)
    shifts = (np.arange(len(of)) - (np.cumsum(num_parts) - num_parts)[of]) * most_bytes
    return TransferList(
        moves.memory,
        moves.local_offsets[of] + shifts,
        moves.remote_offsets[of] + shifts,
        np.minimum(sizes[of] - shifts, most_bytes),
    )

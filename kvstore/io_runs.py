"""Which blocks of a call move together: runs that one system call reads or appends. Pure.

A run is at most so many bytes that a call's work spreads over all threads, but no smaller than pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from kvstore.layout import PAGE_BYTES
from kvstore.store import BlockRead, BlockWrite, Bytes

MAX_RUN_BLOCKS = 256
"""A record is up to three pieces of memory, and a system call takes 1024."""

MIN_READ_BYTES = 1 << 20
MAX_READ_BYTES = 4 << 20
MIN_APPEND_BYTES = 4 << 20
MAX_APPEND_BYTES = 16 << 20


def read_runs(
    reads: Sequence[BlockRead], record_bytes: int, num_threads: int, joins: Callable[[Bytes], bool]
) -> list[list[int]]:
    """Indices into `reads`, run by run: blocks that lie side by side in one segment, in its order.

    The run with the earliest block of the call comes first. `joins`: may what lands in this memory be
    followed by another block?
    """
    share_bytes = len(reads) * record_bytes // num_threads
    run_bytes = min(max(share_bytes, MIN_READ_BYTES), MAX_READ_BYTES)
    limit = min(max(1, run_bytes // record_bytes), MAX_RUN_BLOCKS)
    places = sorted((read.location.segment, read.location.offset, i) for i, read in enumerate(reads))
    runs: list[list[int]] = []
    segment, end, open_to_more = "", 0, False
    for name, offset, i in places:
        joinable = joins(reads[i].into)
        beside = open_to_more and offset == end and name == segment
        if beside and joinable and len(runs[-1]) < limit:
            runs[-1].append(i)
        else:
            runs.append([i])
        segment, end, open_to_more = name, offset + record_bytes, joinable
    runs.sort(key=min)
    return runs


def write_runs(
    writes: Sequence[BlockWrite],
    record_bytes: int,
    segment_bytes: int,
    num_threads: int,
    joins: Callable[[Bytes], bool],
) -> list[Sequence[BlockWrite]]:
    """`writes` cut into runs of one weights id, in order, of about the same size each.

    `joins`: may this memory stand beside another block's in a system call?
    """
    room_bytes = min(MAX_APPEND_BYTES, segment_bytes - PAGE_BYTES)
    limit = min(max(1, room_bytes // record_bytes), MAX_RUN_BLOCKS)
    runs: list[Sequence[BlockWrite]] = []
    for together in _together(writes, joins):
        spread = min(num_threads, len(together), len(together) * record_bytes // MIN_APPEND_BYTES)
        runs += _cut(together, max(-(-len(together) // limit), spread))
    return runs


def _together(writes: Sequence[BlockWrite], joins: Callable[[Bytes], bool]) -> Iterator[Sequence[BlockWrite]]:
    """The longest stretches of one weights id that may stand side by side."""
    start, open_to_more = 0, False
    for i, write in enumerate(writes):
        joinable = joins(write.data)
        if i > start and not (open_to_more and joinable and write.weights_id == writes[start].weights_id):
            yield writes[start:i]
            start = i
        open_to_more = joinable
    if writes:
        yield writes[start:]


def _cut(writes: Sequence[BlockWrite], num_pieces: int) -> Iterator[Sequence[BlockWrite]]:
    """`num_pieces` pieces, none larger than another by more than one."""
    bounds = [len(writes) * piece // num_pieces for piece in range(num_pieces + 1)]
    return (writes[start:stop] for start, stop in pairwise(bounds))

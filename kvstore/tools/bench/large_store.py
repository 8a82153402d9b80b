"""A store of very many blocks that takes little disk: headers and footers are real, the data are holes.

As after a restart: all but the last segment of each writer are sealed; those have real record headers instead
of a footer, and opening reads them one by one.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvstore.block_record import (
    Footer,
    SegmentHeader,
    encode_record_header,
    record_bytes,
    record_header_bytes,
)
from kvstore.keys import BlockKey, chain_root
from kvstore.layout import PAGE_BYTES, BlockLayout
from kvstore.ssd_store import SEGMENT_BYTES
from kvstore.store import BlockWrite
from kvstore.tools.bench.blocks import WEIGHTS

CONTEXT_BLOCKS = 512
NUM_WRITERS = 4
CREATED_S = 1.7e9


def context_keys(layout: BlockLayout, context: int) -> list[BlockKey]:
    """The keys of context number `context`, a chain of CONTEXT_BLOCKS."""
    key, keys = chain_root(WEIGHTS, layout.format), []
    salt = context.to_bytes(8, "little")
    for _ in range(CONTEXT_BLOCKS):
        key = BlockKey(hashlib.blake2b(key + salt, digest_size=16).digest())
        keys.append(key)
    return keys


def write_large_store(directory: Path, layout: BlockLayout, num_blocks: int) -> None:
    """Fill the empty `directory` with segments of `num_blocks` blocks, context after context."""
    most = (SEGMENT_BYTES - PAGE_BYTES) // record_bytes(layout)
    blocks = _blocks(layout, num_blocks)
    num_segments = -(-num_blocks // most)
    for number in range(num_segments):
        entries = [next(blocks) for _ in range(min(most, num_blocks - number * most))]
        writer, sequence = f"node{number % NUM_WRITERS}", number // NUM_WRITERS + 1
        path = directory / f"{WEIGHTS}.{writer}.{sequence:06d}.kv"
        header = SegmentHeader(WEIGHTS, writer, CREATED_S + sequence, layout)
        _write_segment(path, header, entries, sealed=number < num_segments - NUM_WRITERS)


def _blocks(layout: BlockLayout, num_blocks: int) -> Iterator[tuple[BlockKey, BlockKey]]:
    """Key and parent of each block."""
    root = chain_root(WEIGHTS, layout.format)
    for context in range(-(-num_blocks // CONTEXT_BLOCKS)):
        keys = context_keys(layout, context)
        yield from zip(keys, [root, *keys], strict=False)


def _write_segment(
    path: Path, header: SegmentHeader, entries: list[tuple[BlockKey, BlockKey]], *, sealed: bool
) -> None:
    stride = record_bytes(header.layout)
    end = PAGE_BYTES + len(entries) * stride
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(fd, header.encode(), 0)
        os.ftruncate(fd, end)
        if sealed:
            keys, parents = (b"".join(part) for part in zip(*entries, strict=True))
            os.pwrite(fd, Footer(keys, parents, array("I", [1]) * len(entries)).encode(), end)
            return
        page = np.zeros(record_header_bytes(header.layout), np.uint8)
        nothing, no_sums = np.zeros(0, np.uint8), bytes(4 * header.layout.num_layers)
        for i, (key, parent) in enumerate(entries):
            encode_record_header(header.layout, BlockWrite(key, parent, WEIGHTS, nothing, no_sums), page)
            os.pwrite(fd, page.data, PAGE_BYTES + i * stride)
    finally:
        os.close(fd)

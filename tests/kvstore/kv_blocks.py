"""Layouts and blocks that the kvstore tests share."""

from __future__ import annotations

import hashlib

import numpy as np

from kvstore.checksum import layer_checksums
from kvstore.direct_io import aligned_buffer
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import BlockLayout, KVFormat, KVGroup
from kvstore.store import BlockLocation, BlockRead, BlockStore, BlockWrite, Bytes

PLENTY_S = 60.0
WEIGHTS = WeightsId("w0")


def make_layout(num_layers: int, group_bytes: tuple[int, ...], block_tokens: int) -> BlockLayout:
    groups = tuple(KVGroup(f"g{i}", nbytes) for i, nbytes in enumerate(group_bytes))
    return BlockLayout(KVFormat("float32", num_layers, groups), block_tokens)


LAYOUTS = {
    "odd bytes": make_layout(3, (5, 2), 7),
    "whole pages": make_layout(2, (32, 32), 64),
    "many layers": make_layout(1100, (1,), 1),
    "a page and a bit": make_layout(4, (64, 3), 16),
}
SMALL = LAYOUTS["a page and a bit"]


def random_block(layout: BlockLayout, seed: int) -> Bytes:
    """A whole slot, aligned; the Full Block in it depends on `seed`."""
    slot = aligned_buffer(layout.slot_bytes)
    values = np.random.default_rng(seed).integers(0, 256, layout.full_block_bytes, dtype=np.uint8)
    slot[: layout.full_block_bytes] = values
    return slot


def key_of(number: int) -> BlockKey:
    return BlockKey(hashlib.blake2b(str(number).encode(), digest_size=16).digest())


def make_write(layout: BlockLayout, number: int, weights_id: WeightsId = WEIGHTS) -> BlockWrite:
    """Block `number`: its key and its bytes both follow from the number."""
    data = random_block(layout, number)
    return BlockWrite(key_of(number), key_of(number - 1), weights_id, data, layer_checksums(layout, data))


def write_all(store: BlockStore, writes: list[BlockWrite]) -> list[BlockLocation]:
    """Write and expect every block to be stored."""
    locations = store.write(writes, PLENTY_S)
    assert None not in locations
    return [location for location in locations if location is not None]


def make_read(layout: BlockLayout, number: int, location: BlockLocation) -> BlockRead:
    return BlockRead(key_of(number), location, aligned_buffer(layout.slot_bytes))


def same_block(layout: BlockLayout, one: Bytes, other: Bytes) -> bool:
    nbytes = layout.full_block_bytes
    return bool(np.array_equal(one[:nbytes], other[:nbytes]))

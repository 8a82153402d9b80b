"""One engine's data paths over two nodes' staging memories: every byte in its place, none that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from engines.model.runner import BatchShape
from engines.prefill_feed import FeedRow, PrefillFeed
from engines.remote_blocks import RemoteBlocks
from engines.traffic_manager import TrafficManager
from kvstore.checksum import layer_checksums
from kvstore.errors import TransferError
from kvstore.layout import BlockLayout, KVFormat, KVGroup
from kvstore.shm_transport import SharedMemoryTransport
from kvstore.staging import StagingMemory

# An odd number of bytes in a Layer Block, as scaled models have; padding follows every Full Block.
LAYOUT = BlockLayout(KVFormat("uint8", 3, (KVGroup("latent", 11),)), 4)
PATIENCE_S = 20.0


@pytest.fixture
def own() -> Iterator[StagingMemory]:
    with closing(StagingMemory.create("prefill", LAYOUT, 8)) as memory:
        memory.buffer[:] = np.random.default_rng(1).integers(0, 256, len(memory.buffer), np.uint8)
        yield memory


@pytest.fixture
def other() -> Iterator[StagingMemory]:
    with closing(StagingMemory.create("decode", LAYOUT, 8)) as memory:
        memory.buffer[:] = np.random.default_rng(2).integers(0, 256, len(memory.buffer), np.uint8)
        yield memory


@pytest.fixture
def traffic(own: StagingMemory) -> Iterator[TrafficManager]:
    with closing(SharedMemoryTransport()) as transport:
        yield TrafficManager(own, transport, torch.uint8, torch.device("cpu"))


def tokens_of(memory: StagingMemory, slot: int, layer: int) -> list[list[int]]:
    rows: list[list[int]] = memory.tokens(slot, layer, 0, 4).reshape(4, 11).tolist()
    return rows


def sums_of(memory: StagingMemory, slots: list[int]) -> list[bytes]:
    return [layer_checksums(LAYOUT, memory.slot(slot)) for slot in slots]


def test_whole_blocks_go_to_their_places_in_the_pool(traffic: TrafficManager, own: StagingMemory) -> None:
    pool = torch.zeros((3, 6, 4, 11), dtype=torch.uint8)
    traffic.load_blocks(pool, [5, 0, 2], [7, 1, 2])
    for block, slot in ((5, 7), (0, 1), (2, 2)):
        for layer in range(3):
            assert pool[layer, block].tolist() == tokens_of(own, slot, layer)
    assert not pool[:, [1, 3, 4]].any()
    moved = {hop: nbytes for hop, nbytes in traffic.by_hop().items() if nbytes}
    assert moved == {"host_to_device": 3 * LAYOUT.full_block_bytes}


@pytest.fixture
def looping(own: StagingMemory) -> Iterator[TrafficManager]:
    """As `traffic`, with host-device copies made over the transport."""
    with closing(SharedMemoryTransport()) as transport:
        region = own.handle.region()
        yield TrafficManager(own, transport, torch.uint8, torch.device("cpu"), own_region=region)


def test_copies_by_loopback_put_the_same_bytes_in_the_same_places(
    traffic: TrafficManager, looping: TrafficManager, own: StagingMemory
) -> None:
    pools = [torch.zeros((3, 6, 4, 11), dtype=torch.uint8) for _ in "ab"]
    layers = [torch.zeros((20, 11), dtype=torch.uint8) for _ in "ab"]
    for manager, pool, layer in zip((traffic, looping), pools, layers, strict=True):
        manager.load_blocks(pool, [5, 0, 2], [7, 1, 2])
        manager.load_layer(layer[4:16], np.array([6, 0, 3]), 1)
    assert torch.equal(*pools)
    assert torch.equal(*layers)
    assert looping.by_hop() == traffic.by_hop()
    before = own.buffer.copy()
    looping.store_blocks(pools[1], [0, 5], [4, 5])
    for slot, source in ((4, 1), (5, 7)):
        assert all(tokens_of(own, slot, i) == tokens_of(own, source, i) for i in range(3))
    untouched = [slot for slot in range(8) if slot not in (4, 5)]
    assert all(np.array_equal(own.slot(slot), before.reshape(8, -1)[slot]) for slot in untouched)


def test_a_layer_is_fetched_into_the_places_of_its_runs(
    traffic: TrafficManager, other: StagingMemory
) -> None:
    slots = [3, 6, 0, 1, 5]
    runs = [range(1), range(3, 5)]
    remote = RemoteBlocks.of(LAYOUT, other.handle.region(), runs, slots, sums_of(other, slots))
    buffer = torch.zeros((24, 11), dtype=torch.uint8)
    for layer in range(3):
        traffic.fetch(buffer, remote, layer, PATIENCE_S)
        for block in (0, 3, 4):
            assert buffer[4 * block : 4 * block + 4].tolist() == tokens_of(other, slots[block], layer)
        assert not buffer[4:12].any()
        assert not buffer[20:].any()


@pytest.mark.parametrize("block", [0, 2, 4])
@pytest.mark.parametrize("layer", range(3))
def test_a_bit_that_is_wrong_in_any_fetched_block_and_layer_is_seen_there_and_in_no_other(
    block: int, layer: int, traffic: TrafficManager, other: StagingMemory
) -> None:
    slots = [3, 6, 0, 1, 5]
    runs = [range(3), range(4, 5)]
    remote = RemoteBlocks.of(LAYOUT, other.handle.region(), runs, slots, sums_of(other, slots))
    other.tokens(slots[block], layer, 0, 4)[43] ^= 1
    buffer = torch.zeros((24, 11), dtype=torch.uint8)
    for reading in range(3):
        if reading != layer:
            traffic.fetch(buffer, remote, reading, PATIENCE_S)
    run = "0, 3" if block < 3 else "4, 5"
    with pytest.raises(TransferError, match=rf"layer {layer} .*blocks \[{run}\).* decode's staging"):
        traffic.fetch(buffer, remote, layer, PATIENCE_S)


def test_swapped_blocks_of_a_run_are_seen(traffic: TrafficManager, other: StagingMemory) -> None:
    sums = sums_of(other, [3, 6])
    remote = RemoteBlocks.of(LAYOUT, other.handle.region(), [range(2)], [6, 3], sums)
    with pytest.raises(TransferError, match="not what was read"):
        traffic.fetch(torch.zeros((8, 11), dtype=torch.uint8), remote, 0, PATIENCE_S)


@pytest.mark.parametrize("new_tokens", [1, 4, 6])
def test_a_feed_brings_the_hit_of_both_sides_and_sends_on_what_the_decode_side_lacks(
    new_tokens: int, traffic: TrafficManager, own: StagingMemory, other: StagingMemory
) -> None:
    decode_slots = (1, 3, 5, 7, 0, 2)[: 4 + LAYOUT.num_blocks(new_tokens)]
    sums = [*sums_of(own, [4]), *sums_of(other, [3, 5]), *sums_of(own, [6])]
    row = FeedRow((4, None, None, 6), tuple(sums), decode_slots, other.handle.region(), hit_sent=False)
    shape = BatchShape((16,), (new_tokens,))
    buffers = [torch.zeros((1, shape.columns, 11), dtype=torch.uint8) for _ in range(2)]
    untouched = {slot: other.slot(slot).copy() for slot in set(range(8)) - set(decode_slots)}
    feed = PrefillFeed(traffic, buffers, shape, [row], PATIENCE_S)
    computed = torch.randint(0, 256, (3, new_tokens, 11), dtype=torch.uint8)
    for layer in range(3):
        buffer = feed.load(layer)
        hit = buffer[0, :16].reshape(4, 4, 11).tolist()
        assert hit == [tokens_of(own if i in (0, 3) else other, s, layer) for i, s in enumerate((4, 3, 5, 6))]
        buffer[0, 16:] = computed[layer]
        feed.store(layer)
    feed.finish()
    arrived = [
        [token for slot in decode_slots for token in tokens_of(other, slot, layer)] for layer in range(3)
    ]
    for layer in range(3):
        assert arrived[layer][:4] == tokens_of(own, 4, layer)
        assert arrived[layer][12:16] == tokens_of(own, 6, layer)
        assert arrived[layer][16 : 16 + new_tokens] == computed[layer].tolist()
    for slot, before in untouched.items():
        assert np.array_equal(other.slot(slot), before)
    counts = [LAYOUT.tokens_in_block(i, 16 + new_tokens) for i in range(4, len(decode_slots))]
    assert feed.new_checksums(0) == [
        layer_checksums(LAYOUT, other.slot(slot), count)
        for slot, count in zip(decode_slots[4:], counts, strict=True)
    ]


def test_hits_that_an_earlier_chunk_sent_are_not_sent_again(
    traffic: TrafficManager, own: StagingMemory, other: StagingMemory
) -> None:
    row = FeedRow((4,), tuple(sums_of(own, [4])), (1, 3), other.handle.region(), hit_sent=True)
    before = other.slot(1).copy()
    shape = BatchShape((4,), (4,))
    feed = PrefillFeed(
        traffic, [torch.zeros((1, 8, 11), dtype=torch.uint8) for _ in range(2)], shape, [row], PATIENCE_S
    )
    for layer in range(3):
        assert feed.load(layer)[0, :4].tolist() == tokens_of(own, 4, layer)
        feed.store(layer)
    feed.finish()
    assert np.array_equal(other.slot(1), before)
    assert not other.slot(3)[: LAYOUT.full_block_bytes].any()

"""A node's way to its store: what is counted and what the storage NIC is charged with."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from kvstore.limiter import NodeLimiter
from kvstore.memory_store import MemoryStore
from kvstore.storage_traffic import StorageTraffic
from kvstore.store import ReadStatus
from kvstore.traffic import TrafficClass
from kvstore.traffic_ledger import Hop, TrafficLedger
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, make_read, make_write, same_block, write_all

KV = TrafficClass.KV
BLOCK = SMALL.full_block_bytes


@pytest.fixture
def nic():
    rates = {"snic_bytes_per_s": 1e9, "cnic_bytes_per_s": None}
    with closing(NodeLimiter.create("node", **rates, num_cnics=0, traffic_classes=True)) as limiter:
        yield limiter.snic


@pytest.fixture
def store(nic):
    with closing(StorageTraffic(MemoryStore(SMALL, 1 << 20), SMALL, TrafficLedger(), nic)) as store:
        yield store


def counted(store):
    return [store.ledger.moved(hop, KV) for hop in (Hop.STORAGE_READ, Hop.STORAGE_WRITE)]


def charged(nic):
    return [lane.use(KV).nbytes for lane in (nic.inbound, nic.outbound)]


def test_every_block_is_counted_and_charged_in_its_direction(store, nic):
    writes = [make_write(SMALL, number) for number in range(5)]
    locations = write_all(store, writes)
    assert counted(store) == charged(nic) == [0, 5 * BLOCK]
    reads = [make_read(SMALL, number, locations[number]) for number in (3, 1)]
    assert [result.status for result in store.read(reads, PLENTY_S)] == [ReadStatus.OK] * 2
    assert same_block(SMALL, reads[0].into, writes[3].data)
    assert counted(store) == charged(nic) == [2 * BLOCK, 5 * BLOCK]


def test_a_block_that_is_not_there_costs_nothing(store, nic):
    [location] = write_all(store, [make_write(SMALL, 0)])
    [result] = store.read([make_read(SMALL, 1, replace(location, segment="none"))], PLENTY_S)
    assert result.status is ReadStatus.MISSING
    assert charged(nic)[0] == counted(store)[0] == 0


def test_blocks_the_nic_brings_too_late_have_timed_out_and_their_slots_are_free(store, nic):
    locations = write_all(store, [make_write(SMALL, number) for number in range(4)])
    nic.set_rate(BLOCK)  # a block a second
    reads = [make_read(SMALL, number, location) for number, location in enumerate(locations)]
    results = store.read(reads, 0.1)
    assert {result.status for result in results} == {ReadStatus.TIMED_OUT}
    assert all(result.settled.is_set() for result in results)
    assert charged(nic)[0] == 0


def test_blocks_the_nic_would_carry_too_late_are_not_stored(store, nic):
    nic.set_rate(BLOCK)
    assert store.write([make_write(SMALL, 0)], 0.1) == [None]
    assert counted(store) == [0, 0]
    assert store.store.stored_bytes == 0


def test_without_a_nic_bytes_are_counted_all_the_same():
    with closing(StorageTraffic(MemoryStore(SMALL, 1 << 20), SMALL, TrafficLedger(), None)) as store:
        write_all(store, [make_write(SMALL, 7)])
        assert counted(store) == [0, BLOCK]


def test_what_is_put_into_the_store_before_a_run_is_neither_counted_nor_charged(store, nic):
    [location] = store.put([make_write(SMALL, 0)], PLENTY_S)
    assert counted(store) == charged(nic) == [0, 0]
    [result] = store.read([make_read(SMALL, 0, location)], PLENTY_S)
    assert result.status is ReadStatus.OK

"""MooncakeStore on a real master over TCP on loopback; the store's contract over it is in test_store.py."""

import signal
import time
from contextlib import closing
from dataclasses import replace

import pytest

from kvstore.direct_io import aligned_buffer
from kvstore.errors import StoreError
from kvstore.mooncake_config import MooncakeConfig
from kvstore.mooncake_store import MooncakeStore
from kvstore.store import BlockRead, ReadStatus
from tests.kvstore.kv_blocks import (
    LAYOUTS,
    PLENTY_S,
    SMALL,
    key_of,
    make_read,
    make_write,
    same_block,
    write_all,
)
from tests.kvstore.mooncake_cluster import MooncakeCluster, MooncakeUnderTest, skip_without_mooncake
from tests.kvstore.stopped_process import stop_process

OK, MISSING = ReadStatus.OK, ReadStatus.MISSING
MISSES = {MISSING, ReadStatus.FAILED, ReadStatus.TIMED_OUT}


@pytest.fixture
def own_cluster(tmp_path):
    """A cluster whose master the test may kill."""
    skip_without_mooncake()
    with MooncakeCluster(tmp_path / "master.log") as cluster:
        yield cluster


def test_blocks_in_registered_memory_move_without_a_copy(mooncake_cluster):
    store = mooncake_cluster.store(SMALL, "registered")
    staging = aligned_buffer(4 * SMALL.slot_bytes)
    slots = [staging[i * SMALL.slot_bytes : (i + 1) * SMALL.slot_bytes] for i in range(4)]
    store.register(staging)
    writes = [make_write(SMALL, number) for number in range(2)]
    for write, slot in zip(writes, slots, strict=False):
        slot[:] = write.data
    in_place = [replace(write, data=slot) for write, slot in zip(writes, slots, strict=False)]
    locations = write_all(store, in_place)
    reads = [BlockRead(key_of(n), at, slots[2 + n]) for n, at in enumerate(locations)]
    assert [result.status for result in store.read(reads, PLENTY_S)] == [OK, OK]
    for write, slot in zip(writes, slots[2:], strict=True):
        assert same_block(SMALL, slot, write.data)
    assert store.num_copied == 0
    assert store.read([make_read(SMALL, 0, locations[0])], PLENTY_S)[0].status is OK
    assert store.num_copied == 1


def test_a_block_evicted_by_the_master_is_missing_and_later_ones_are_there(mooncake_cluster):
    layout = LAYOUTS["whole pages"]
    under_test = MooncakeUnderTest(mooncake_cluster, layout)
    gone, kept = write_all(under_test.open(), [make_write(layout, number) for number in range(2)])
    under_test.lose(gone)
    reads = [make_read(layout, number, at) for number, at in enumerate([gone, kept])]
    assert [result.status for result in under_test.open("reader").read(reads, PLENTY_S)] == [MISSING, OK]


def test_a_block_found_damaged_can_be_written_again(mooncake_cluster):
    under_test = MooncakeUnderTest(mooncake_cluster, SMALL)
    store = under_test.open()
    (spoilt,) = write_all(store, [make_write(SMALL, 1)])
    under_test.flip_bit(spoilt, 0)
    (again,) = write_all(store, [make_write(SMALL, 1)])
    reads = [make_read(SMALL, 1, location) for location in (spoilt, again)]
    assert [result.status for result in store.read(reads, PLENTY_S)] == [ReadStatus.CORRUPT, OK]


def test_a_full_cluster_evicts_blocks_and_those_are_missing(own_cluster):
    layout = LAYOUTS["whole pages"]
    config = replace(own_cluster.config, memory_bytes=1 << 24)
    with closing(MooncakeStore(config, layout, writer_id="w", io_threads=2)) as store:
        locations = []
        for first in range(0, 2400, 100):
            locations += store.write([make_write(layout, first + n) for n in range(100)], PLENTY_S)
        stored = [(number, at) for number, at in enumerate(locations) if at is not None]
        assert sum(at.nbytes for _, at in stored) > config.memory_bytes
        results = store.read([make_read(layout, number, at) for number, at in stored], PLENTY_S)
        statuses = [result.status for result in results]
        assert set(statuses) == {OK, MISSING}


def test_blocks_of_another_layout_are_missing(mooncake_cluster):
    location = write_all(mooncake_cluster.store(SMALL, "writer"), [make_write(SMALL, 0)])[0]
    layout = LAYOUTS["whole pages"]
    result = mooncake_cluster.store(layout, "writer").read([make_read(layout, 0, location)], PLENTY_S)
    assert result[0].status is MISSING


def miss_everything(store, locations):
    """Read and write with a short deadline: every block is missed in time. Return the reads' results."""
    reads = [make_read(SMALL, number, at) for number, at in enumerate(locations)]
    started_s = time.monotonic()
    results = store.read(reads, 1.0)
    stored = store.write([make_write(SMALL, number) for number in range(100, 120)], 1.0)
    assert time.monotonic() - started_s < 4.0
    assert {result.status for result in results} <= MISSES
    assert stored == [None] * 20
    return results


def test_a_killed_master_makes_misses_in_time_and_a_new_one_is_joined(own_cluster):
    store = own_cluster.store(SMALL, "writer")
    locations = write_all(store, [make_write(SMALL, number) for number in range(20)])
    own_cluster.kill_master()
    miss_everything(store, locations)
    own_cluster.start_master()
    end_s = time.monotonic() + PLENTY_S
    while store.write([make_write(SMALL, 0)], 5.0) == [None]:
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_a_stopped_master_makes_misses_in_time_and_says_when_slots_are_safe(own_cluster):
    store = own_cluster.store(SMALL, "writer")
    locations = write_all(store, [make_write(SMALL, number) for number in range(20)])
    stop_process(own_cluster.master.pid)
    results = miss_everything(store, locations)
    assert {result.status for result in results} == {ReadStatus.TIMED_OUT}
    assert not any(result.settled.is_set() for result in results[:16])
    own_cluster.master.send_signal(signal.SIGCONT)
    assert all(result.settled.wait(PLENTY_S) for result in results)


def test_a_master_that_is_not_there_is_one_clear_line():
    skip_without_mooncake()
    config = MooncakeConfig("127.0.0.1:1", "tcp", "", 1 << 24)
    with pytest.raises(
        StoreError, match=r"no mooncake_master answers at kvstore\.mooncake\.master=127\.0\.0\.1:1"
    ):
        MooncakeStore(config, SMALL, writer_id="w", io_threads=1)


@pytest.mark.parametrize(
    ("key", "value", "bounds"),
    [
        ("master", "localhost", "host:port"),
        ("master", ":50051", "host:port"),
        ("master", "localhost:99999", "host:port"),
        ("protocol", "smoke", "tcp or rdma"),
        ("memory_bytes", 0, ">= 16777216"),
    ],
)
def test_a_value_out_of_range_is_refused_naming_key_value_and_range(key, value, bounds):
    good = MooncakeConfig("localhost:50051", "tcp", "", 1 << 30)
    with pytest.raises(ValueError, match=rf"kvstore\.mooncake\.{key} must be {bounds}.*got {value!r}"):
        replace(good, **{key: value})

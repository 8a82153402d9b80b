"""The contract of a BlockStore, over every implementation."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from kvstore.errors import StoreError
from kvstore.memory_store import MemoryStore
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
from tests.kvstore.store_under_test import KINDS

OK, MISSING, CORRUPT = ReadStatus.OK, ReadStatus.MISSING, ReadStatus.CORRUPT


@pytest.fixture(params=KINDS)
def under_test(request, make_under_test):
    return make_under_test(request.param, SMALL)


@pytest.fixture
def stored(under_test):
    """Blocks 0..4 and where they are."""
    return write_all(under_test.open(), [make_write(SMALL, number) for number in range(5)])


def read_statuses(under_test, locations):
    reads = [make_read(SMALL, number, location) for number, location in enumerate(locations)]
    return [result.status for result in under_test.open("reader").read(reads, PLENTY_S)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_come_back_byte_for_byte_through_another_handle(kind, name, make_under_test):
    layout = LAYOUTS[name]
    under_test = make_under_test(kind, layout)
    writes = [make_write(layout, number) for number in range(40)]
    locations = write_all(under_test.open(), writes)
    reads = [make_read(layout, number, location) for number, location in enumerate(locations)]
    results = under_test.open("reader").read(reads, PLENTY_S)
    for write, read, result in zip(writes, reads, results, strict=True):
        assert (result.status, result.layer_checksums) == (OK, write.layer_checksums)
        assert same_block(layout, read.into, write.data)


def test_blocks_may_be_read_in_any_order_and_more_than_once(under_test, stored):
    order = [3, 0, 3, 4]
    reads = [make_read(SMALL, number, stored[number]) for number in order]
    assert [result.status for result in under_test.open().read(reads, PLENTY_S)] == [OK] * 4
    for number, read in zip(order, reads, strict=True):
        assert same_block(SMALL, read.into, make_write(SMALL, number).data)


@pytest.mark.parametrize("byte", [0, SMALL.layer_block_bytes, SMALL.full_block_bytes - 1])
def test_a_flipped_bit_spoils_its_block_and_no_other(under_test, stored, byte):
    under_test.flip_bit(stored[2], byte)
    assert read_statuses(under_test, stored) == [OK, OK, CORRUPT, OK, OK]


@pytest.mark.parametrize("byte", [0, 5, 12, 30, 45, 50, 54, 58, 4000])
def test_a_flipped_bit_in_a_records_header_spoils_its_block_and_no_other(under_test, stored, byte):
    under_test.flip_header_bit(stored[1], byte)
    assert read_statuses(under_test, stored) == [OK, CORRUPT, OK, OK, OK]


def test_a_block_that_is_gone_is_missing(under_test):
    store = under_test.open()
    gone, kept = (write_all(store, [make_write(SMALL, 0, w)])[0] for w in ("w0", "w1"))
    under_test.lose(gone)
    reads = [make_read(SMALL, 0, location) for location in (gone, kept)]
    results = under_test.open("reader").read(reads, PLENTY_S)
    assert [result.status for result in results] == [MISSING, OK]


def test_another_blocks_bytes_never_pass_for_the_wanted_block(under_test, stored):
    swapped = [stored[1], stored[0], *stored[2:]]
    assert read_statuses(under_test, swapped) == [CORRUPT, CORRUPT, OK, OK, OK]


def test_a_location_with_another_checksum_is_of_another_record(under_test, stored):
    stale = replace(stored[0], checksum=stored[0].checksum ^ 1)
    assert read_statuses(under_test, [stale]) == [CORRUPT]


def test_a_location_nobody_ever_made_is_missing(under_test, stored):
    nowhere = [
        replace(stored[0], segment="w9.nobody.000001.kv"),
        replace(stored[0], segment="../../etc/passwd"),
        replace(stored[0], segment=""),
        replace(stored[0], offset=stored[0].offset + (1 << 40)),
    ]
    assert read_statuses(under_test, nowhere) == [MISSING] * 4


def test_data_that_does_not_match_the_checksums_it_came_with_is_never_returned_as_good(under_test):
    write = make_write(SMALL, 0)
    write.data[17] ^= 1
    assert read_statuses(under_test, write_all(under_test.open(), [write])) == [CORRUPT]


def test_a_block_written_twice_can_be_read_from_both_places(under_test):
    writes = [make_write(SMALL, 0), make_write(SMALL, 0)]
    locations = write_all(under_test.open(), writes)
    locations += write_all(under_test.open("other"), writes[:1])
    reads = [make_read(SMALL, 0, location) for location in locations]
    results = under_test.open("reader").read(reads, PLENTY_S)
    assert [result.status for result in results] == [OK] * 3
    assert len(set(locations)) == 3


def test_memory_that_is_neither_aligned_nor_padded_will_do(under_test):
    nbytes = SMALL.full_block_bytes
    write = make_write(SMALL, 0)
    crooked = np.zeros(nbytes + 1, np.uint8)[1:]
    crooked[:] = write.data[:nbytes]
    writes = [replace(write, data=crooked), make_write(SMALL, 1), replace(write, data=crooked)]
    locations = write_all(under_test.open(), writes)
    fence = np.full(nbytes + 4, 77, np.uint8)
    result = under_test.open().read([BlockRead(key_of(0), locations[2], fence[3:-1])], PLENTY_S)
    assert result[0].status is OK
    assert same_block(SMALL, fence[3:-1], write.data)
    assert [*fence[:3], fence[-1]] == [77] * 4
    assert read_statuses(under_test, locations[:2]) == [OK, OK]


def test_a_read_after_its_deadline_times_out_and_says_when_the_slot_is_safe(under_test, stored):
    reads = [make_read(SMALL, i % 5, stored[i % 5]) for i in range(200)]
    results = under_test.open().read(reads, 0.0)
    late = [result for result in results if result.status is ReadStatus.TIMED_OUT]
    assert len(late) > 100
    assert all(result.settled.wait(PLENTY_S) for result in late)
    assert {result.status for result in results} <= {OK, ReadStatus.TIMED_OUT}


def test_a_write_after_its_deadline_stores_nothing_it_does_not_report(under_test):
    locations = under_test.open().write([make_write(SMALL, n) for n in range(300)], 0.0)
    assert locations.count(None) > 100
    for number, location in enumerate(locations):
        if location is not None:
            result = under_test.open().read([make_read(SMALL, number, location)], PLENTY_S)
            assert result[0].status is OK


def test_threads_may_write_and_read_at_once(under_test):
    store, failures = under_test.open(), []

    def write_then_read(first):
        numbers = range(first, first + 30)
        locations = write_all(store, [make_write(SMALL, number) for number in numbers])
        reads = [make_read(SMALL, n, at) for n, at in zip(numbers, locations, strict=True)]
        failures.extend(r for r in store.read(reads, PLENTY_S) if r.status is not OK)
        for number, read in zip(numbers, reads, strict=True):
            assert same_block(SMALL, read.into, make_write(SMALL, number).data)
        finished.append(first)

    finished = []
    threads = [threading.Thread(target=write_then_read, args=[i * 100]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PLENTY_S)
    assert sorted(finished) == [0, 100, 200, 300]
    assert not failures


def test_nothing_asked_is_nothing_done(under_test):
    assert under_test.open().read([], PLENTY_S) == []
    assert under_test.open().write([], PLENTY_S) == []


def test_a_closed_store_says_so(under_test, stored):
    store = under_test.open()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.read([make_read(SMALL, 0, stored[0])], PLENTY_S)
    with pytest.raises(StoreError, match="closed"):
        store.write([make_write(SMALL, 0)], PLENTY_S)


def test_a_memory_store_takes_what_fits_and_keeps_it():
    store = MemoryStore(SMALL, capacity_bytes=3 * (4096 + SMALL.full_block_bytes))
    locations = store.write([make_write(SMALL, number) for number in range(5)], PLENTY_S)
    assert locations[3:] == [None, None]
    reads = [make_read(SMALL, number, locations[number]) for number in range(3)]
    assert [result.status for result in store.read(reads, PLENTY_S)] == [OK] * 3
    assert store.write([make_write(SMALL, 9)], PLENTY_S) == [None]
    assert store.stored_bytes <= store.capacity_bytes

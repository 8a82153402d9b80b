"""SsdStore on a real distributed file system: two clients, and a storage server that dies.

The store's contract over it is in test_store.py.
"""

import functools
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

import pytest

from kvstore.files import PosixFiles
from kvstore.segment_contents import SegmentContents
from kvstore.segment_scan import scan_segments
from kvstore.ssd_store import SsdStore
from kvstore.store import ReadStatus
from kvstore.store_owner import StoreOwner
from tests.kvstore.kv_blocks import LAYOUTS, PLENTY_S, key_of, make_read, make_write, same_block, write_all
from tests.kvstore.moosefs import running_moosefs
from tests.kvstore.stopped_process import stop_process

LAYOUT = LAYOUTS["whole pages"]
SEGMENT_BYTES = 2 << 20


def open_store(directory, writer_id):
    return SsdStore(
        directory,
        LAYOUT,
        writer_id=writer_id,
        io_threads=2,
        segment_bytes=SEGMENT_BYTES,
        durability="data",  # what is announced has reached the servers
    )


@functools.cache
def reader_store(directory):
    """In the reader process: open as long as it lives, as a node's would be."""
    return open_store(directory, "reader")


def read_numbers(directory, located):
    """In the reader process: how many of (number, location) are not read byte for byte."""
    reads = [make_read(LAYOUT, number, location) for number, location in located]
    results = reader_store(directory).read(reads, PLENTY_S)
    return sum(
        result.status is not ReadStatus.OK
        or not same_block(LAYOUT, read.into, make_write(LAYOUT, number).data)
        for (number, _), read, result in zip(located, reads, results, strict=True)
    )


def scan(directory):
    """In the reader process: every block in the directory, by key, and how many segments are sealed."""
    found, num_sealed = {}, 0
    for contents in scan_segments(directory, PosixFiles()):
        if isinstance(contents, SegmentContents):
            found |= {contents.key(i): contents.location(i) for i in range(len(contents))}
            num_sealed += contents.sealed
    return found, num_sealed


@pytest.fixture
def reader():
    """Another process; it is given the other mount."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda function, *arguments: process.submit(function, *arguments).result(PLENTY_S)


def test_another_client_reads_each_block_as_soon_as_it_is_told_where_it_lies(moosefs, reader, tmp_path):
    ours, theirs = (mount / tmp_path.name for mount in moosefs.mounts)
    with closing(open_store(ours, "writer")) as store:
        for first in range(0, 200, 20):
            numbers = range(first, first + 20)
            locations = write_all(store, [make_write(LAYOUT, number) for number in numbers])
            assert reader(read_numbers, theirs, list(zip(numbers, locations, strict=True))) == 0


def test_another_client_finds_all_blocks_by_scanning_while_the_writer_writes_and_when_it_ended(
    moosefs, reader, tmp_path
):
    ours, theirs = (mount / tmp_path.name for mount in moosefs.mounts)
    numbers = range(300)
    with closing(open_store(ours, "writer")) as store:
        locations = write_all(store, [make_write(LAYOUT, number) for number in numbers])
        written = {key_of(number): location for number, location in zip(numbers, locations, strict=True)}
        found, num_sealed = wait_for_scan(reader, theirs, written)
        assert num_sealed < len({location.segment for location in locations})
    found, num_sealed = reader(scan, theirs)
    assert found == written
    assert num_sealed == len({location.segment for location in locations})
    assert reader(read_numbers, theirs, [(number, found[key_of(number)]) for number in numbers]) == 0


def wait_for_scan(reader, directory, written):
    """A client may know a file's length and a directory's names a second late."""
    end_s = time.monotonic() + PLENTY_S
    while True:
        found, num_sealed = reader(scan, directory)
        assert found.items() <= written.items()
        if found == written:
            return found, num_sealed
        assert time.monotonic() < end_s, (len(found), len(written))
        time.sleep(0.1)


# Owners: who evicts, and what others see of it -----------------------------------------------------

LEASE_TTL_S = 2.0


def open_owner(directory):
    return StoreOwner(
        directory,
        capacity_bytes=8 * SEGMENT_BYTES,
        reserve_bytes=0,
        lease_ttl_s=LEASE_TTL_S,
        files=PosixFiles(),
        segment_bytes=SEGMENT_BYTES,
    )


def _own(pipe, directory):
    """An owner in a process of its own: it is told what to unlink and answers whether it owns, and bytes."""
    owner = open_owner(directory)
    pipe.send(owner.holds_lease)
    while True:
        freed = owner.unlink(pipe.recv())
        pipe.send((owner.holds_lease, freed))


@pytest.fixture
def own_elsewhere():
    """Starts owners in processes of their own; each is killed at the end."""
    processes = []

    def start(directory):
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_own, args=[theirs, directory], daemon=True)
        process.start()
        processes.append(process)
        assert pipe.poll(PLENTY_S)
        return process, pipe, pipe.recv()

    yield start
    for process in processes:
        process.kill()
        process.join(PLENTY_S)


def wait_until(condition):
    end_s = time.monotonic() + PLENTY_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_the_owner_on_one_client_is_stopped_and_one_on_the_other_takes_over(moosefs, own_elsewhere, tmp_path):
    ours, theirs = (mount / tmp_path.name for mount in moosefs.mounts)
    with closing(open_store(ours, "writer")) as store:
        (location,) = write_all(store, [make_write(LAYOUT, 0)])
    process, pipe, owns = own_elsewhere(theirs)
    assert owns
    with closing(open_owner(ours)) as second:
        assert not second.holds_lease
        assert second.unlink([location.segment]) == 0
        stop_process(process.pid)
        pipe.send([location.segment])
        wait_until(lambda: second.holds_lease)
        os.kill(process.pid, signal.SIGCONT)
        assert pipe.poll(PLENTY_S)
        assert pipe.recv() == (False, 0), "a process that was superseded evicted"
        assert (ours / location.segment).exists()
        assert second.unlink([location.segment]) > 0


def test_when_the_owner_on_one_client_is_killed_one_on_the_other_takes_over(moosefs, own_elsewhere, tmp_path):
    ours, theirs = (mount / tmp_path.name for mount in moosefs.mounts)
    with closing(open_store(ours, "writer")) as store:
        (location,) = write_all(store, [make_write(LAYOUT, 0)])
    process, _, owns = own_elsewhere(theirs)
    assert owns
    with closing(open_owner(ours)) as second:
        process.kill()
        process.join(PLENTY_S)
        wait_until(lambda: second.holds_lease)
        assert second.unlink([location.segment]) > 0


def test_what_the_owner_on_one_client_evicts_is_a_counted_miss_on_the_other(moosefs, own_elsewhere, tmp_path):
    """Blocks of other segments are read on, and of one that was open what is read is right."""
    ours, theirs = (mount / tmp_path.name for mount in moosefs.mounts)
    with closing(open_store(ours, "writer")) as store, closing(open_store(ours, "reader")) as reading:
        numbers = range(1000)
        locations = write_all(store, [make_write(LAYOUT, number) for number in numbers])
        segments = sorted({location.segment for location in locations})
        assert len(segments) > 2
        _, pipe, owns = own_elsewhere(theirs)
        assert owns
        pipe.send([segments[0]])
        assert pipe.poll(PLENTY_S)
        assert pipe.recv()[1] > 0

        def read():
            reads = [make_read(LAYOUT, n, location) for n, location in zip(numbers, locations, strict=True)]
            results = reading.read(reads, PLENTY_S)
            for number, block, result in zip(numbers, reads, results, strict=True):
                if result.status is ReadStatus.OK:
                    assert same_block(LAYOUT, block.into, make_write(LAYOUT, number).data)
            return [result.status for result in results]

        # A client may know a name for a second that another one took away.
        wait_until(lambda: ReadStatus.MISSING in read())
        assert {
            location.segment
            for location, status in zip(locations, read(), strict=True)
            if status is not ReadStatus.OK
        } == {segments[0]}
        assert reading.figures()["reads_missing"] > 0
        assert reading.figures()["reads_corrupt"] == reading.figures()["reads_failed"] == 0


def test_a_writer_notices_that_the_owner_on_the_other_client_evicted_its_segment(
    moosefs, own_elsewhere, tmp_path
):
    ours, theirs = (mount / tmp_path.name for mount in moosefs.mounts)
    with closing(open_store(ours, "writer")) as store:
        (lost,) = write_all(store, [make_write(LAYOUT, 0)])
        _, pipe, owns = own_elsewhere(theirs)
        assert owns
        pipe.send([lost.segment])
        assert pipe.poll(PLENTY_S)
        assert pipe.recv()[1] > 0
        written = [0]

        def left_it():
            written[0] += 1
            (location,) = write_all(store, [make_write(LAYOUT, written[0])])
            return location.segment != lost.segment and location

        # The client may know for a second what another one took away.
        wait_until(left_it)
        location = left_it()
        assert store.caching_stopped is None
        (result,) = store.read([make_read(LAYOUT, written[0], location)], PLENTY_S)
        assert result.status is ReadStatus.OK


def test_reads_and_writes_go_on_byte_for_byte_when_one_of_two_storage_servers_is_killed(
    reader, tmp_path_factory
):
    with running_moosefs(tmp_path_factory.mktemp("moosefs")) as moosefs:
        ours, theirs = (mount / "kv" for mount in moosefs.mounts)
        located = []
        with closing(open_store(ours, "writer")) as store:
            for first in range(0, 600, 20):
                if first == 200:
                    moosefs.kill_chunkserver(1)
                numbers = range(first, first + 20)
                locations = write_all(store, [make_write(LAYOUT, number) for number in numbers])
                located += zip(numbers, locations, strict=True)
                assert reader(read_numbers, theirs, located[-60:]) == 0
        assert len({location.segment for _, location in located}) > 2
        assert reader(read_numbers, theirs, located) == 0

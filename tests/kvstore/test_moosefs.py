"""SsdStore on a real distributed file system: two clients, and a storage server that dies.

The store's contract over it is in test_store.py.
"""

import functools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

import pytest

from kvstore.files import PosixFiles
from kvstore.segment_contents import SegmentContents
from kvstore.segment_scan import scan_segments
from kvstore.ssd_store import SsdStore
from kvstore.store import ReadStatus
from tests.kvstore.kv_blocks import LAYOUTS, PLENTY_S, key_of, make_read, make_write, same_block, write_all
from tests.kvstore.moosefs import running_moosefs

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

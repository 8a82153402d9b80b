"""What the SSD store promises beyond the BlockStore contract: files, failures, processes."""

import logging
import os
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.direct_io import probe_direct, read_fully, write_fully
from kvstore.errors import StoreError
from kvstore.layout import PAGE_BYTES
from kvstore.segment_files import MAX_OPEN_TO_READ
from kvstore.ssd_store import SsdStore
from kvstore.store import ReadStatus
from tests.kvstore.kv_blocks import (
    LAYOUTS,
    PLENTY_S,
    SMALL,
    make_read,
    make_write,
    same_block,
    write_all,
)

OK, MISSING = ReadStatus.OK, ReadStatus.MISSING
RECORD_BYTES = PAGE_BYTES + SMALL.slot_bytes


def open_ssd(directory, layout=SMALL, writer_id="writer", **options):
    return SsdStore(directory, layout, writer_id=writer_id, io_threads=2, **options)


@pytest.fixture
def store(tmp_path):
    with closing(open_ssd(tmp_path)) as store:
        yield store


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts small file systems, or skips saying why it cannot."""
    mounted = []

    def mount(options):
        path = tmp_path / f"mount{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NOT TESTED: a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def run_in_process(code, *arguments):
    """Run `code` in another process; its last line of output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def num_open_files():
    return len(os.listdir("/proc/self/fd"))


# Files -------------------------------------------------------------------------------------------


def test_a_block_written_by_another_process_is_read_here(store, tmp_path):
    code = """
import sys; from pathlib import Path; from tests.kvstore.kv_blocks import *
from kvstore.ssd_store import SsdStore
store = SsdStore(Path(sys.argv[1]), SMALL, writer_id="other", io_threads=1)
location = write_all(store, [make_write(SMALL, 7)])[0]
print(location.segment, location.offset, location.nbytes, location.checksum)
"""
    segment, *numbers = run_in_process(code, tmp_path).split()
    location = replace(write_all(store, [make_write(SMALL, 1)])[0], segment=segment)
    location = replace(
        location, **dict(zip(("offset", "nbytes", "checksum"), map(int, numbers), strict=True))
    )
    read = make_read(SMALL, 7, location)
    assert store.read([read], PLENTY_S)[0].status is OK
    assert same_block(SMALL, read.into, make_write(SMALL, 7).data)


def test_blocks_of_one_call_lie_one_after_the_other(store):
    locations = write_all(store, [make_write(SMALL, number) for number in range(10)])
    assert {location.segment for location in locations} == {"w0.writer.000001.kv"}
    steps = np.diff([location.offset for location in locations])
    assert set(steps) == {RECORD_BYTES}
    assert {location.nbytes for location in locations} == {RECORD_BYTES}


def test_a_segment_holds_one_weights_id_and_is_left_when_full(tmp_path):
    with closing(open_ssd(tmp_path, segment_bytes=PAGE_BYTES + 3 * RECORD_BYTES)) as store:
        for number in range(8):
            write_all(store, [make_write(SMALL, number, "w0")])
        write_all(store, [make_write(SMALL, 9, "w1")])
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    full = PAGE_BYTES + 3 * RECORD_BYTES
    assert sizes == {
        "w0.writer.000001.kv": full,
        "w0.writer.000002.kv": full,
        "w0.writer.000003.kv": full - RECORD_BYTES,
        "w1.writer.000004.kv": PAGE_BYTES + RECORD_BYTES,
    }


def test_a_writer_that_comes_back_under_its_old_name_overwrites_nothing(tmp_path):
    locations = []
    for number in range(3):
        with closing(open_ssd(tmp_path)) as store:
            locations += write_all(store, [make_write(SMALL, number)])
    assert len({location.segment for location in locations}) == 3
    with closing(open_ssd(tmp_path)) as store:
        reads = [make_read(SMALL, number, location) for number, location in enumerate(locations)]
        assert [result.status for result in store.read(reads, PLENTY_S)] == [OK] * 3


def test_a_block_larger_than_a_segment_gets_one_of_its_own(tmp_path):
    with closing(open_ssd(tmp_path, segment_bytes=PAGE_BYTES)) as store:
        locations = write_all(store, [make_write(SMALL, number) for number in range(2)])
        reads = [make_read(SMALL, number, location) for number, location in enumerate(locations)]
        assert [result.status for result in store.read(reads, PLENTY_S)] == [OK, OK]


@pytest.mark.parametrize("cut_bytes", [PAGE_BYTES, PAGE_BYTES + 1, SMALL.slot_bytes, RECORD_BYTES])
def test_a_truncated_segment_loses_its_last_block_only(store, tmp_path, cut_bytes):
    locations = write_all(store, [make_write(SMALL, number) for number in range(3)])
    path = tmp_path / locations[0].segment
    os.truncate(path, path.stat().st_size - cut_bytes)
    reads = [make_read(SMALL, number, location) for number, location in enumerate(locations)]
    assert [result.status for result in store.read(reads, PLENTY_S)] == [OK, OK, MISSING]


def test_segments_of_another_format_are_missing_and_both_formats_are_named_once(tmp_path, caplog):
    other = LAYOUTS["whole pages"]
    with closing(open_ssd(tmp_path, other)) as writer, closing(open_ssd(tmp_path)) as reader:
        location = write_all(writer, [make_write(other, 0)])[0]
        for _ in range(3):
            result = reader.read([make_read(SMALL, 0, location)], PLENTY_S)
            assert result[0].status is MISSING
    lines = [record.getMessage() for record in caplog.records if location.segment in record.getMessage()]
    assert len(lines) == 1
    assert other.format.digest().hex() in lines[0]
    assert SMALL.format.digest().hex() in lines[0]


@pytest.mark.parametrize("byte", [0, 9, 14, 60, 3000])
def test_a_segment_with_a_damaged_header_is_missing(store, tmp_path, byte):
    location = write_all(store, [make_write(SMALL, 0)])[0]
    path = tmp_path / location.segment
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    assert store.read([make_read(SMALL, 0, location)], PLENTY_S)[0].status is MISSING


def test_the_number_of_open_files_is_bounded_and_close_returns_them_all(tmp_path):
    before = num_open_files()
    store = open_ssd(tmp_path, segment_bytes=PAGE_BYTES)
    numbers = range(MAX_OPEN_TO_READ + 40)
    locations = [write_all(store, [make_write(SMALL, n, f"w{n % 9}")])[0] for n in numbers]
    for _ in range(2):
        reads = [make_read(SMALL, n, at) for n, at in zip(numbers, locations, strict=True)]
        assert all(result.status is OK for result in store.read(reads, PLENTY_S))
    assert MAX_OPEN_TO_READ <= num_open_files() - before <= MAX_OPEN_TO_READ + 5
    store.close()
    assert num_open_files() == before


def test_direct_io_is_probed_and_leaves_no_file(tmp_path):
    with closing(open_ssd(tmp_path)) as store:
        assert store.direct == probe_direct(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Failures ----------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_caching_with_one_warning_and_reads_go_on(tmpfs, caplog):
    path = tmpfs("size=200k")
    with closing(open_ssd(path)) as store:
        numbers = range(40)
        locations = [store.write([make_write(SMALL, n)], PLENTY_S)[0] for n in numbers]
        kept = [(n, at) for n, at in zip(numbers, locations, strict=True) if at is not None]
        assert 5 < len(kept) < 20
        assert [at is None for at in locations] == [n >= len(kept) for n in numbers]
        reads = [make_read(SMALL, n, at) for n, at in kept]
        assert all(result.status is OK for result in store.read(reads, PLENTY_S))
        assert "No space left" in store.caching_stopped
    assert sum("KV caching stopped" in record.getMessage() for record in caplog.records) == 1


def test_a_store_opened_on_a_full_disk_serves_reads_only(tmpfs):
    path = tmpfs("size=64k")
    with closing(open_ssd(path)) as store:
        location = write_all(store, [make_write(SMALL, 0)])[0]
    with (path / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(PAGE_BYTES)):
            pass
    with closing(open_ssd(path)) as store:
        assert "No space left" in store.caching_stopped
        assert store.write([make_write(SMALL, 1)], PLENTY_S) == [None]
        assert store.read([make_read(SMALL, 0, location)], PLENTY_S)[0].status is OK


def test_a_disk_that_turns_read_only_stops_the_caching(tmpfs):
    path = tmpfs("size=10m")
    with closing(open_ssd(path)) as store:
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        assert store.write([make_write(SMALL, 0)], PLENTY_S) == [None]
        assert "Read-only file system" in store.caching_stopped


def test_a_read_only_directory_is_refused_in_one_line(tmpfs):
    path = tmpfs("size=1m,ro")
    with pytest.raises(StoreError, match=rf"kvstore\.path {path} cannot be written: Read-only"):
        open_ssd(path)


@pytest.mark.parametrize(
    ("try_direct", "reason"),
    [
        (False, "[Errno 27] File too large"),
        (True, "[Errno 22] Invalid argument"),
    ],
)
def test_a_write_cut_short_stops_the_caching_and_spares_earlier_blocks(tmp_path, try_direct, reason):
    code = """
import resource, sys; from pathlib import Path; from tests.kvstore.kv_blocks import *
from kvstore.ssd_store import SsdStore
store = SsdStore(Path(sys.argv[1]), SMALL, writer_id="w", io_threads=1, try_direct=sys.argv[2] == "True")
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
numbers = range(20)
locations = [store.write([make_write(SMALL, n)], PLENTY_S)[0] for n in numbers]
kept = [(n, at) for n, at in zip(numbers, locations) if at is not None]
results = store.read([make_read(SMALL, n, at) for n, at in kept], PLENTY_S)
print(len(kept), {r.status.value for r in results}, store.caching_stopped)
"""
    assert run_in_process(code, tmp_path, try_direct) == f"4 {{'ok'}} {reason}"


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_path_that_is_no_directory_is_refused_in_one_line(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"kvstore\.path .*file.* cannot be written"):
        open_ssd(tmp_path / below)


@pytest.mark.parametrize("writer_id", ["", "a.b", "a/b", "x" * 65])
def test_a_writer_id_that_would_make_a_bad_file_name_is_refused(tmp_path, writer_id):
    with pytest.raises(StoreError, match="writer id"):
        open_ssd(tmp_path, writer_id=writer_id)


def test_a_medium_that_answers_with_an_error_fails_the_block_only(store, tmp_path, caplog):
    good = write_all(store, [make_write(SMALL, 0)])[0]
    (tmp_path / "w0.other.000001.kv").mkdir()
    bad = replace(good, segment="w0.other.000001.kv")
    results = store.read([make_read(SMALL, 0, at) for at in (bad, good)], PLENTY_S)
    assert [result.status for result in results] == [ReadStatus.FAILED, OK]
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_read_that_hangs_times_out_and_its_slot_is_safe_only_when_it_has_ended(tmp_path):
    """Opening a FIFO blocks until somebody opens its other end: a medium that does not answer."""
    with closing(open_ssd(tmp_path, try_direct=False)) as store:
        good = write_all(store, [make_write(SMALL, 0)])[0]
        hung = replace(good, segment="w0.hung.000001.kv")
        os.mkfifo(tmp_path / hung.segment)
        results = store.read([make_read(SMALL, 0, at) for at in (hung, good)], 1.0)
        assert [result.status for result in results] == [ReadStatus.TIMED_OUT, OK]
        assert not results[0].settled.is_set()
        os.close(os.open(tmp_path / hung.segment, os.O_WRONLY))
        assert results[0].settled.wait(PLENTY_S)


# Whole reads and writes --------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=6), st.integers(0, 5000))
def test_pieces_of_any_size_are_written_and_read_whole(tmp_path_factory, sizes, offset):
    path = tmp_path_factory.getbasetemp() / "pieces"
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    back = [np.zeros(size, np.uint8) for size in sizes]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_fully(fd, pieces, offset)
        assert os.fstat(fd).st_size == (offset + sum(sizes) if sum(sizes) else 0)
        assert read_fully(fd, back, offset) == sum(sizes)
    finally:
        os.close(fd)
    assert all(np.array_equal(a, b) for a, b in zip(pieces, back, strict=True))


def test_a_read_past_the_end_reports_what_there_was(tmp_path):
    (tmp_path / "short").write_bytes(bytes(5000))
    fd = os.open(tmp_path / "short", os.O_RDONLY)
    assert read_fully(fd, [np.zeros(4096, np.uint8), np.zeros(4096, np.uint8)], 0) == 5000
    assert read_fully(fd, [np.zeros(10, np.uint8)], 9999) == 0
    os.close(fd)

"""What the SSD store promises beyond the BlockStore contract: files, failures, processes."""

import errno
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import ssd_store
from kvstore.direct_io import probe_direct, read_fully, write_fully
from kvstore.errors import LayoutError, StoreError
from kvstore.files import PosixFiles
from kvstore.layout import PAGE_BYTES
from kvstore.segment_readers import IDLE_S, MAX_OPEN_TO_READ
from kvstore.segment_scan import scan_segment, scan_segments
from kvstore.ssd_store import SsdStore
from kvstore.store import ReadStatus
from tests.kvstore.kv_blocks import (
    LAYOUTS,
    PLENTY_S,
    SMALL,
    make_layout,
    make_read,
    make_write,
    same_block,
    write_all,
)
from tests.kvstore.recording_files import RecordingFiles

POSIX = PosixFiles()
OK, MISSING = ReadStatus.OK, ReadStatus.MISSING
RECORD_BYTES = PAGE_BYTES + SMALL.slot_bytes


def open_ssd(directory, layout=SMALL, writer_id="writer", **options):
    return SsdStore(directory, layout, writer_id=writer_id, io_threads=2, **options)


@pytest.fixture
def store(tmp_path):
    with closing(open_ssd(tmp_path)) as store:
        yield store


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
    records = {found.name: len(found) for found in scan_segments(tmp_path, POSIX)}
    assert records == {
        "w0.writer.000001.kv": 3,
        "w0.writer.000002.kv": 3,
        "w0.writer.000003.kv": 2,
        "w1.writer.000004.kv": 1,
    }
    footer_bytes = 2 * PAGE_BYTES
    for name, number in records.items():
        nbytes = PAGE_BYTES + number * RECORD_BYTES + footer_bytes
        assert (tmp_path / name).stat().st_size == nbytes


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


def test_a_segment_nobody_reads_is_let_go_so_that_dropping_it_frees_its_space(tmp_path):
    now_s, before = [0.0], num_open_files()
    with closing(open_ssd(tmp_path)) as writer:
        locations = [write_all(writer, [make_write(SMALL, n, f"w{n}")])[0] for n in range(3)]
    with closing(open_ssd(tmp_path, clock=lambda: now_s[0])) as store:

        def read(number):
            results = store.read([make_read(SMALL, number, locations[number])], PLENTY_S)
            return results[0].status

        assert [read(0), read(1)] == [OK, OK]
        assert num_open_files() - before == 2
        (tmp_path / locations[0].segment).unlink()
        now_s[0] += IDLE_S - 1
        assert [read(0), read(2)] == [OK, OK]  # it is read on where it is open
        now_s[0] += 2
        assert read(2) is OK
        assert num_open_files() - before == 2
        now_s[0] += IDLE_S - 1
        assert [read(2), read(0)] == [OK, MISSING]


def test_direct_io_is_probed_and_leaves_no_file(tmp_path):
    with closing(open_ssd(tmp_path)) as store:
        assert store.direct == probe_direct(POSIX, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_probe_left_behind_is_taken_away_with_the_next_opening(tmp_path):
    (tmp_path / ".probe-0123456789abcdef").write_bytes(bytes(PAGE_BYTES))
    (tmp_path / ".probe-of-somebody-else").write_bytes(b"x")
    assert probe_direct(POSIX, tmp_path) in (True, False)
    assert [path.name for path in tmp_path.iterdir()] == [".probe-of-somebody-else"]


def test_processes_that_open_a_store_at_once_take_no_probe_for_a_failure(tmp_path):
    direct = probe_direct(POSIX, tmp_path)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: probe_direct(POSIX, tmp_path), range(200)))
    assert found == [direct] * 200
    assert list(tmp_path.iterdir()) == []


# Blocks that move together -----------------------------------------------------------------------

TINY = LAYOUTS["odd bytes"]
MIB = 1 << 20


@pytest.fixture
def recording(tmp_path):
    """A store whose system calls are seen; its probe is forgotten."""
    files = RecordingFiles()
    with closing(open_ssd(tmp_path, TINY, files=files)) as store:
        files.forget()
        yield store, files


def test_small_blocks_of_one_call_leave_in_one_extent_of_a_mebibyte_and_more(recording):
    store, files = recording
    write_all(store, [make_write(TINY, number) for number in range(200)])
    header, *appends = files.named("pwritev")
    assert header == PAGE_BYTES
    assert appends == [200 * 2 * PAGE_BYTES]
    assert appends[0] >= MIB
    files.forget()
    write_all(store, [make_write(TINY, number) for number in range(700)])
    assert len(files.named("pwritev")) == 3
    assert min(files.named("pwritev")) >= MIB


def test_large_batches_leave_in_pieces_of_at_most_16_mebibytes(tmp_path):
    layout, files = make_layout(4, (4096,), 64), RecordingFiles()
    with closing(open_ssd(tmp_path, layout, files=files)) as store:
        files.forget()
        locations = write_all(store, [make_write(layout, number % 3) for number in range(40)])
    _, *appends, _footer = files.named("pwritev")
    assert sum(appends) == 40 * (MIB + PAGE_BYTES)
    assert MIB <= min(appends) <= max(appends) <= 16 * MIB
    assert len({location.offset for location in locations}) == 40


def test_blocks_side_by_side_are_read_by_one_call_in_whatever_order_they_are_asked_for(recording):
    store, files = recording
    numbers = list(range(100))
    locations = write_all(store, [make_write(TINY, number) for number in numbers])
    np.random.default_rng(0).shuffle(numbers)
    files.forget()
    reads = [make_read(TINY, number, locations[number]) for number in numbers]
    results = store.read(reads, PLENTY_S)
    assert all(result.status is OK for result in results)
    for number, read, result in zip(numbers, reads, results, strict=True):
        write = make_write(TINY, number)
        assert same_block(TINY, read.into, write.data)
        assert result.layer_checksums == write.layer_checksums
    _header, *calls = files.named("preadv")
    assert calls == [100 * 2 * PAGE_BYTES]


def test_a_call_reads_at_most_four_mebibytes_and_spreads_over_the_threads(tmp_path):
    layout, files = make_layout(4, (1024,), 64), RecordingFiles()
    with closing(open_ssd(tmp_path, layout, files=files, segment_bytes=1 << 30)) as store:
        locations = write_all(store, [make_write(layout, number) for number in range(48)])
        for number, largest, calls in ((48, 4 * MIB, 4), (16, 3 * MIB, 2), (4, 2 * MIB, 1)):
            files.forget()
            reads = [make_read(layout, n, locations[n]) for n in range(number)]
            assert all(result.status is OK for result in store.read(reads, PLENTY_S))
            bytes_read = [nbytes for nbytes in files.named("preadv") if nbytes > PAGE_BYTES]
            assert max(bytes_read) <= largest
            assert len(bytes_read) >= calls


def test_one_bad_block_in_a_run_spoils_no_other(recording, tmp_path):
    store, _ = recording
    locations = write_all(store, [make_write(TINY, number) for number in range(5)])
    path = tmp_path / locations[0].segment
    content = bytearray(path.read_bytes())
    content[locations[1].offset + PAGE_BYTES] ^= 1
    with path.open("r+b") as file:
        file.write(content[: locations[3].offset + PAGE_BYTES + TINY.full_block_bytes - 1])
        file.truncate()
    reads = [make_read(TINY, number, location) for number, location in enumerate(locations)]
    statuses = [result.status for result in store.read(reads, PLENTY_S)]
    assert statuses == [OK, ReadStatus.CORRUPT, OK, MISSING, MISSING]


def test_a_medium_that_fails_in_the_middle_of_a_run_fails_that_block_only(tmp_path):
    """A call that begins at the second block or passes over it is refused."""

    class BadSector(RecordingFiles):
        where = None

        def preadv(self, fd, views, offset):
            if self.where is not None and offset <= self.where < offset + sum(map(len, views)):
                raise OSError(5, "Input/output error")
            return super().preadv(fd, views, offset)

    files = BadSector()
    with closing(open_ssd(tmp_path, TINY, files=files)) as store:
        locations = write_all(store, [make_write(TINY, number) for number in range(5)])
        files.where = locations[1].offset + 17
        reads = [make_read(TINY, number, location) for number, location in enumerate(locations)]
        statuses = [result.status for result in store.read(reads, PLENTY_S)]
    assert statuses == [OK, ReadStatus.FAILED, OK, OK, OK]


def test_a_medium_that_answers_in_small_pieces_gives_whole_blocks(tmp_path):
    class Stingy(RecordingFiles):
        def preadv(self, fd, views, offset):
            return super().preadv(fd, [views[0][:3000] if len(views[0]) > 3000 else views[0]], offset)

    class Pages(RecordingFiles):
        def preadv(self, fd, views, offset):
            return super().preadv(fd, [views[0][:PAGE_BYTES]], offset)

    with closing(open_ssd(tmp_path, files=Pages())) as store:
        locations = write_all(store, [make_write(SMALL, number) for number in range(5)])
        reads = [make_read(SMALL, number, location) for number, location in enumerate(locations)]
        assert [result.status for result in store.read(reads, PLENTY_S)] == [OK] * 5
    assert len(scan_segment(tmp_path, locations[0].segment, Pages())) == 5
    # Less than a page at a time cannot be told from the file's end; it is a miss, and no wrong bytes.
    with closing(open_ssd(tmp_path, files=Stingy(), try_direct=False)) as store:
        assert {result.status for result in store.read(reads, PLENTY_S)} == {MISSING}


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 0},
        {"offset": -PAGE_BYTES},
        {"offset": PAGE_BYTES + 1},
        {"offset": PAGE_BYTES + 512},
        {"offset": 1 << 70},
        {"nbytes": RECORD_BYTES - PAGE_BYTES},
    ],
)
def test_a_location_where_no_record_of_this_layout_can_be_is_missing(store, wrong):
    good = write_all(store, [make_write(SMALL, 0)])[0]
    results = store.read([make_read(SMALL, 0, at) for at in (replace(good, **wrong), good)], PLENTY_S)
    assert [result.status for result in results] == [MISSING, OK]


# Durability --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durability", "first", "later"),
    [
        ("none", ["open", "pwritev", "pwritev", "is_unlinked"], ["pwritev", "is_unlinked"]),
        (
            "data",
            ["open", "pwritev", "pwritev", "fdatasync", "is_unlinked"],
            ["pwritev", "fdatasync", "is_unlinked"],
        ),
        (
            "full",
            ["open", "pwritev", "sync_directory", "pwritev", "fdatasync", "is_unlinked"],
            ["pwritev", "fdatasync", "is_unlinked"],
        ),
    ],
)
def test_a_location_comes_back_once_its_block_is_as_durable_as_asked(tmp_path, durability, first, later):
    files = RecordingFiles()
    with closing(open_ssd(tmp_path, files=files, durability=durability)) as store:
        files.forget()
        write_all(store, [make_write(SMALL, number) for number in range(20)])
        assert [call for call, _ in files.calls] == first
        files.forget()
        write_all(store, [make_write(SMALL, number) for number in range(20)])
        assert [call for call, _ in files.calls] == later


def test_a_new_directory_is_as_durable_as_what_it_holds(tmp_path):
    files = RecordingFiles()
    for _ in range(2):
        open_ssd(tmp_path / "new" / "store", files=files, durability="full").close()
    assert len(files.named("sync_directory")) == 2


@pytest.mark.parametrize("call", ["fdatasync", "sync_directory"])
def test_a_block_that_could_not_be_made_durable_is_not_stored(tmp_path, call):
    def refuse(name):
        if name == call:
            raise OSError(5, "Input/output error")

    with closing(open_ssd(tmp_path, files=RecordingFiles(refuse), durability="full")) as store:
        assert store.write([make_write(SMALL, 0)], PLENTY_S) == [None]
        assert "Input/output error" in store.caching_stopped
    assert [len(segment) for segment in scan_segments(tmp_path, POSIX)] in ([], [0])


# A segment that another job evicts while it is appended to


def evict_all(directory):
    for path in directory.glob("*.kv"):
        path.unlink(missing_ok=True)


def test_a_writer_leaves_a_segment_that_was_evicted_and_says_what_is_lost(tmp_path, caplog):
    num_open = num_open_files()
    with closing(open_ssd(tmp_path)) as store:
        (lost,) = write_all(store, [make_write(SMALL, 0)])
        evict_all(tmp_path)
        found = write_all(store, [make_write(SMALL, number) for number in (1, 2)])
        (further,) = write_all(store, [make_write(SMALL, 3)])
        assert {location.segment for location in (*found, further)} == {
            path.name for path in tmp_path.glob("*.kv")
        }
        reads = [make_read(SMALL, n, location) for n, location in enumerate([lost, *found, further])]
        assert [result.status for result in store.read(reads, PLENTY_S)] == [MISSING, OK, OK, OK]
        assert store.caching_stopped is None
    assert num_open_files() == num_open
    assert [r.getMessage() for r in caplog.records if "evicted" in r.message] == [
        f"{lost.segment} was evicted while it was written to; 1 blocks in it are misses now"
    ]


def test_blocks_whose_segment_went_between_their_write_and_the_answer_are_written_again(tmp_path):
    files, left = RecordingFiles(), [2]

    def evict_twice(call):
        if call == "is_unlinked" and left[0]:
            left[0] -= 1
            evict_all(tmp_path)

    files.before = evict_twice
    with closing(open_ssd(tmp_path, files=files)) as store:
        locations = write_all(store, [make_write(SMALL, number) for number in range(5)])
        reads = [make_read(SMALL, number, location) for number, location in enumerate(locations)]
        assert all(result.status is OK for result in store.read(reads, PLENTY_S))
    assert locations[0].segment.endswith(".000003.kv")


def test_a_directory_that_loses_every_new_segment_stops_the_caching(tmp_path, caplog):
    files = RecordingFiles(lambda call: evict_all(tmp_path) if call == "is_unlinked" else None)
    with closing(open_ssd(tmp_path, files=files)) as store:
        assert store.write([make_write(SMALL, 0)], PLENTY_S) == [None]
        assert "3 segments in a row" in store.caching_stopped
    assert list(tmp_path.glob("*")) == []


def test_a_stale_handle_is_a_segment_that_was_evicted(tmp_path):
    """As NFS says it."""
    stale = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def refuse(call):
        if call == "fdatasync" and stale:
            raise stale.pop()

    with closing(open_ssd(tmp_path, files=RecordingFiles(refuse), durability="data")) as store:
        (location,) = write_all(store, [make_write(SMALL, 0)])
        assert location.segment.endswith(".000002.kv")
        assert store.caching_stopped is None


def test_under_constant_eviction_every_block_is_whole_or_a_miss(tmp_path):
    done = threading.Event()

    def evict():
        while not done.wait(0.001):
            for path in sorted(tmp_path.glob("*.kv"))[:1]:
                path.unlink(missing_ok=True)

    evictor = threading.Thread(target=evict, daemon=True)
    with closing(open_ssd(tmp_path, segment_bytes=PAGE_BYTES + 8 * RECORD_BYTES)) as store:
        evictor.start()
        located = []
        try:
            for first in range(0, 400, 4):
                numbers = range(first, first + 4)
                locations = store.write([make_write(SMALL, number) for number in numbers], PLENTY_S)
                located += [(n, at) for n, at in zip(numbers, locations, strict=True) if at is not None]
        finally:
            done.set()
            evictor.join()
        reads = [make_read(SMALL, number, location) for number, location in located]
        for (number, _), read, result in zip(located, reads, store.read(reads, PLENTY_S), strict=True):
            assert result.status in (OK, MISSING)
            if result.status is OK:
                assert same_block(SMALL, read.into, make_write(SMALL, number).data)


def test_a_segment_without_its_footer_is_no_failure(tmp_path):
    files = RecordingFiles()
    store = open_ssd(tmp_path, files=files)
    location = write_all(store, [make_write(SMALL, 0)])[0]

    def refuse(call):
        if call == "pwritev":
            raise OSError(28, "No space left on device")

    files.before = refuse
    store.close()
    found = scan_segment(tmp_path, location.segment, POSIX)
    assert (found.sealed, len(found)) == (False, 1)


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


def test_a_disk_that_has_room_again_is_written_to_again(tmpfs, caplog):
    caplog.set_level(logging.INFO)
    path, now_s = tmpfs("size=200k"), [0.0]
    filler = path / "filler"
    with closing(open_ssd(path, clock=lambda: now_s[0], retry_s=30.0)) as store:
        kept = write_all(store, [make_write(SMALL, 0)])
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(PAGE_BYTES)):
                pass
        for _ in range(3):
            assert store.write([make_write(SMALL, 1)], PLENTY_S) == [None]
            now_s[0] += 31.0
        filler.unlink()
        kept += write_all(store, [make_write(SMALL, n) for n in (1, 2)])
        assert store.caching_stopped is None
    found = [segment.location(i) for segment in scan_segments(path, POSIX) for i in range(len(segment))]
    assert found == kept
    news = [(r.levelname, r.getMessage()[:18]) for r in caplog.records if "caching" in r.getMessage()]
    assert news == [("WARNING", "KV caching stopped"), ("INFO", "KV caching goes on")]


def test_figures_count_what_became_of_blocks(store, tmp_path):
    locations = write_all(store, [make_write(SMALL, number) for number in range(3)])
    bad = [replace(locations[0], segment="w0.no.000001.kv"), replace(locations[0], checksum=1)]
    reads = [make_read(SMALL, 0, location) for location in (locations[0], *bad)]
    store.read(reads, PLENTY_S)
    store.write([make_write(SMALL, 4)], -1.0)
    assert store.figures() == {
        "reads_ok": 1,
        "reads_missing": 1,
        "reads_corrupt": 1,
        "reads_failed": 0,
        "reads_timed_out": 0,
        "writes_ok": 3,
        "writes_refused": 1,
        "bytes_read": SMALL.full_block_bytes,
        "bytes_written": 3 * RECORD_BYTES,
        "direct": int(probe_direct(POSIX, tmp_path)),
    }


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


def test_a_store_opened_on_a_read_only_directory_serves_reads_only(tmpfs, caplog):
    path = tmpfs("size=10m")
    with closing(open_ssd(path)) as store:
        location = write_all(store, [make_write(SMALL, 0)])[0]
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    with closing(open_ssd(path)) as store:
        assert "Read-only file system" in store.caching_stopped
        assert store.write([make_write(SMALL, 1)], PLENTY_S) == [None]
        assert store.read([make_read(SMALL, 0, location)], PLENTY_S)[0].status is OK
    assert sum("KV caching stopped" in record.getMessage() for record in caplog.records) == 1


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


def test_a_format_that_a_segment_cannot_describe_is_refused_at_opening(tmp_path):
    layout = make_layout(1, (1,) * 200, 1)
    with pytest.raises(LayoutError, match="fewer or shorter names"):
        open_ssd(tmp_path, layout)


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


def test_a_write_that_hangs_is_given_up_at_its_deadline_and_reads_go_on(tmp_path):
    may_go_on = threading.Event()
    files = RecordingFiles()
    with closing(open_ssd(tmp_path, files=files)) as store:
        good = write_all(store, [make_write(SMALL, 0)])[0]

        def hang(call):
            if call == "pwritev":
                assert may_go_on.wait(PLENTY_S)

        files.before = hang
        writes = [make_write(SMALL, number, f"w{number}") for number in range(8)]
        assert store.write(writes, 0.1) == [None] * 8
        assert store.read([make_read(SMALL, 0, good)], PLENTY_S)[0].status is OK
        may_go_on.set()
        write_all(store, [make_write(SMALL, 9)])


def test_closing_gives_up_on_a_read_that_never_ends_and_leaves_its_file_open(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(ssd_store, "CLOSE_DEADLINE_S", 0.1)
    store = open_ssd(tmp_path, try_direct=False)
    hung = replace(write_all(store, [make_write(SMALL, 0)])[0], segment="w0.hung.000001.kv")
    os.mkfifo(tmp_path / hung.segment)
    result = store.read([make_read(SMALL, 0, hung)], 0.1)[0]
    store.close()
    assert "1 reads or writes never ended" in caplog.text
    os.close(os.open(tmp_path / hung.segment, os.O_WRONLY))
    assert result.settled.wait(PLENTY_S)


# Whole reads and writes --------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=6), st.integers(0, 5000))
def test_pieces_of_any_size_are_written_and_read_whole(tmp_path_factory, sizes, offset):
    path = tmp_path_factory.getbasetemp() / "pieces"
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    back = [np.zeros(size, np.uint8) for size in sizes]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_fully(POSIX, fd, pieces, offset)
        assert os.fstat(fd).st_size == (offset + sum(sizes) if sum(sizes) else 0)
        assert read_fully(POSIX, fd, back, offset) == sum(sizes)
    finally:
        os.close(fd)
    assert all(np.array_equal(a, b) for a, b in zip(pieces, back, strict=True))


def test_a_read_past_the_end_reports_what_there_was(tmp_path):
    (tmp_path / "short").write_bytes(bytes(5000))
    fd = os.open(tmp_path / "short", os.O_RDONLY)
    assert read_fully(POSIX, fd, [np.zeros(4096, np.uint8), np.zeros(4096, np.uint8)], 0) == 5000
    assert read_fully(POSIX, fd, [np.zeros(10, np.uint8)], 9999) == 0
    os.close(fd)

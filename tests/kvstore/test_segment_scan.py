"""What a scan finds in a directory, and what it costs."""

from __future__ import annotations

import os
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kvstore import block_record
from kvstore.block_record import SegmentHeader, UnreadableSegment
from kvstore.checksum import checksum
from kvstore.errors import LayoutError, StoreError
from kvstore.files import PosixFiles
from kvstore.layout import PAGE_BYTES, BlockLayout, KVFormat, KVGroup
from kvstore.segment_contents import BadSegment, SegmentContents
from kvstore.segment_scan import scan_segment, scan_segments
from kvstore.ssd_store import SsdStore
from kvstore.store import ReadStatus
from tests.kvstore.kv_blocks import (
    LAYOUTS,
    PLENTY_S,
    SMALL,
    WEIGHTS,
    key_of,
    make_read,
    make_write,
    write_all,
)
from tests.kvstore.recording_files import RecordingFiles

POSIX = PosixFiles()
NAME = "w0.writer.000001.kv"


def write_blocks(directory: Path, numbers, layout=SMALL, **options):
    with closing(SsdStore(directory, layout, writer_id="writer", io_threads=1, **options)) as store:
        return write_all(store, [make_write(layout, number) for number in numbers])


def as_unsealed(path: Path) -> None:
    """As its writer left it when it died: without a footer."""
    found = scan_segment(path.parent, path.name, POSIX)
    os.truncate(path, found.offsets[-1] + found.record_bytes)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_segment_tells_everything_about_its_blocks(tmp_path, name, sealed):
    layout = LAYOUTS[name]
    locations = write_blocks(tmp_path, range(9), layout, wall_clock=lambda: 1234.5)
    if not sealed:
        as_unsealed(tmp_path / NAME)
    found = scan_segment(tmp_path, NAME, POSIX)
    assert isinstance(found, SegmentContents)
    assert (found.layout, found.weights_id, found.writer_id) == (layout, WEIGHTS, "writer")
    assert (found.created_s, found.sealed, found.name) == (1234.5, sealed, NAME)
    assert found.nbytes == (tmp_path / NAME).stat().st_size
    assert [found.location(i) for i in range(len(found))] == locations
    assert [found.key(i) for i in range(9)] == [key_of(n) for n in range(9)]
    assert [found.parent(i) for i in range(9)] == [key_of(n - 1) for n in range(9)]


@pytest.mark.parametrize("num_blocks", [1, 40])
def test_a_sealed_segment_costs_the_same_few_calls_however_many_blocks_it_holds(tmp_path, num_blocks):
    write_blocks(tmp_path, range(num_blocks))
    files = RecordingFiles()
    assert len(scan_segment(tmp_path, NAME, files)) == num_blocks
    assert [call for call, _ in files.calls] == ["size", "open", "preadv", "preadv"]


def test_a_footer_longer_than_the_first_look_is_read_whole(tmp_path):
    layout = LAYOUTS["odd bytes"]
    locations = write_blocks(tmp_path, range(2100), layout)
    found = scan_segment(tmp_path, NAME, POSIX)
    assert found.sealed
    assert [found.location(i) for i in range(len(found))] == locations


def test_a_segment_that_is_still_written_to_is_read_by_its_records(tmp_path):
    with closing(SsdStore(tmp_path, SMALL, writer_id="writer", io_threads=1)) as store:
        locations = write_all(store, [make_write(SMALL, number) for number in range(3)])
        found = scan_segment(tmp_path, NAME, POSIX)
        assert not found.sealed
        assert [found.location(i) for i in range(len(found))] == locations


def test_a_place_whose_write_failed_is_a_hole_in_the_footer(tmp_path):
    def refuse_third_write(call):
        writes = len(files.named("pwritev"))
        if call == "pwritev" and writes == 3 + probe_writes:
            raise OSError(28, "No space left on device")

    files, now_s = RecordingFiles(refuse_third_write), [0.0]
    probe_writes = 2  # O_DIRECT is probed with two, then come the header and each block
    store = SsdStore(tmp_path, SMALL, writer_id="writer", io_threads=1, files=files, clock=lambda: now_s[0])
    with closing(store):
        first = write_all(store, [make_write(SMALL, 0)])
        assert store.write([make_write(SMALL, 1)], PLENTY_S) == [None]
        now_s[0] += 31.0
        last = write_all(store, [make_write(SMALL, 2)])
    found = scan_segment(tmp_path, NAME, POSIX)
    assert found.sealed
    assert [found.location(i) for i in range(len(found))] == first + last
    assert [found.key(i) for i in range(len(found))] == [key_of(0), key_of(2)]
    assert [found.parent(i) for i in range(len(found))] == [key_of(-1), key_of(1)]


def test_files_that_are_no_segments_are_named_with_the_reason(tmp_path):
    write_blocks(tmp_path, [0])
    (tmp_path / "w0.empty.000001.kv").write_bytes(b"")
    (tmp_path / "w0.letter.000001.kv").write_bytes(b"Dear Sir" * 1000)
    (tmp_path / "w0.folder.000001.kv").mkdir()
    os.mkfifo(tmp_path / "w0.pipe.000001.kv")
    (tmp_path / "my blocks.kv").write_bytes((tmp_path / NAME).read_bytes())
    (tmp_path / "lease.00000001").write_text("not ours")
    reasons = {
        found.name: found.reason for found in scan_segments(tmp_path, POSIX) if isinstance(found, BadSegment)
    }
    assert reasons == {
        "my blocks.kv": "not named like a segment",
        "w0.empty.000001.kv": "shorter than a segment's header",
        "w0.letter.000001.kv": "no segment header",
        "w0.folder.000001.kv": "cannot be read: Is a directory",
        "w0.pipe.000001.kv": "cannot be read: Illegal seek",
    }


def test_a_segment_of_another_version_is_named_with_both_versions(tmp_path, monkeypatch):
    location = write_blocks(tmp_path, [0])[0]
    content = bytearray((tmp_path / NAME).read_bytes())
    struct.pack_into("<I", content, 8, 7)
    crc = checksum(np.frombuffer(content, np.uint8, PAGE_BYTES - 4))
    struct.pack_into("<I", content, PAGE_BYTES - 4, crc)
    (tmp_path / NAME).write_bytes(content)
    (bad,) = scan_segments(tmp_path, POSIX)
    assert bad == BadSegment(NAME, len(content), "format version 7, this is version 1")
    with closing(SsdStore(tmp_path, SMALL, writer_id="reader", io_threads=1)) as store:
        assert store.read([make_read(SMALL, 0, location)], PLENTY_S)[0].status is ReadStatus.MISSING


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"weights_id": 3}', b"\xff\xfe", b"nul"])
def test_a_header_that_describes_nothing_is_refused(text):
    page = (block_record._SEGMENT.pack(b"DPKVSEGM", 1, len(text)) + text).ljust(PAGE_BYTES - 4, b"\0")
    page += struct.pack("<I", checksum(np.frombuffer(page, np.uint8)))
    with pytest.raises(UnreadableSegment, match="does not describe blocks"):
        SegmentHeader.decode(np.frombuffer(page, np.uint8))


def test_a_header_keeps_every_part_of_a_format():
    groups = (KVGroup("latent", 1024), KVGroup("window", 64, "session"))
    layout = BlockLayout(KVFormat("float8_e4m3fn", 61, groups, shard_index=2, shard_count=8), 128)
    header = SegmentHeader(WEIGHTS, "node-1", 99.25, layout)
    assert SegmentHeader.decode(np.frombuffer(header.encode(), np.uint8)) == header


def test_a_format_too_long_for_a_header_is_refused_in_one_line():
    groups = tuple(KVGroup(f"group number {i}", 1) for i in range(100))
    header = SegmentHeader(WEIGHTS, "w", 0.0, BlockLayout(KVFormat("float32", 1, groups), 1))
    with pytest.raises(LayoutError, match="fewer or shorter names"):
        header.encode()


def test_several_formats_and_weights_share_a_directory(tmp_path):
    other = LAYOUTS["whole pages"]
    write_blocks(tmp_path, range(3))
    with closing(SsdStore(tmp_path, other, writer_id="other", io_threads=1)) as store:
        write_all(store, [make_write(other, 5, "w1")])
    found = [(s.weights_id, s.layout, len(s)) for s in scan_segments(tmp_path, POSIX)]
    assert found == [("w0", SMALL, 3), ("w1", other, 1)]


def test_a_segment_that_vanishes_meanwhile_is_left_out(tmp_path):
    write_blocks(tmp_path, [0])

    def vanish(call):
        if call == "size":
            (tmp_path / NAME).unlink()

    assert list(scan_segments(tmp_path, RecordingFiles(vanish))) == []
    assert scan_segment(tmp_path, NAME, POSIX) == BadSegment(NAME, 0, "not there")


def test_a_medium_that_fails_makes_one_segment_bad_and_no_other(tmp_path):
    write_blocks(tmp_path, [0])
    write_blocks(tmp_path, [1])
    files = RecordingFiles()

    def fail_first(call):
        if len(files.named("preadv")) == 2 and call == "preadv":
            raise OSError(5, "Input/output error")

    files.before = fail_first
    bad, good = scan_segments(tmp_path, files)
    assert bad.reason == "cannot be read: Input/output error"
    assert len(good) == 1


def test_a_directory_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match=r"kvstore\.path .*nowhere cannot be listed: No such file"):
        list(scan_segments(tmp_path / "nowhere", POSIX))

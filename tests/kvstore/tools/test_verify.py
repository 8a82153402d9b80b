"""`python -m kvstore verify` names what is damaged, wherever it is, and nothing else."""

from __future__ import annotations

import os
import random

import pytest

from kvstore.files import PosixFiles
from kvstore.layout import PAGE_BYTES
from kvstore.tools.verify import verify_store
from tests.kvstore.kv_blocks import LAYOUTS, SMALL, key_of
from tests.kvstore.tools.small_store import HEADER_BYTES, answer_of, fill, flip_bit, segments, table_of


def bad_blocks(capsys, directory):
    return answer_of(capsys, "verify", directory, exit_code=1)["bad_blocks"]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
def test_a_whole_store_has_no_bad_block(tmp_path, capsys, layout, sealed):
    fill(tmp_path, range(5), layout=layout, close=sealed)
    answer = answer_of(capsys, "verify", tmp_path)
    assert (answer["segments"], answer["blocks"], answer["bad_blocks"]) == (1, 5, [])
    assert "every block is whole" in table_of(capsys, "verify", tmp_path)


def test_an_empty_directory_is_fine(tmp_path, capsys):
    assert answer_of(capsys, "verify", tmp_path)["blocks"] == 0


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
def test_a_flipped_bit_is_named_by_segment_offset_key_and_layer(tmp_path, capsys, sealed):
    location = fill(tmp_path, range(4), close=sealed)[2]
    layer = 3
    at = location.offset + HEADER_BYTES + layer * SMALL.layer_block_bytes + 5
    flip_bit(tmp_path / location.segment, at)
    assert bad_blocks(capsys, tmp_path) == [
        {
            "segment": location.segment,
            "sealed": sealed,
            "offset": location.offset,
            "key": key_of(2).hex(),
            "reason": "data damaged",
            "layers": [layer],
        }
    ]
    shown = table_of(capsys, "verify", tmp_path, exit_code=1)
    assert "1 bad block" in shown
    assert key_of(2).hex() in shown


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
def test_a_damaged_record_header_is_named(tmp_path, capsys, sealed):
    location = fill(tmp_path, range(3), close=sealed)[1]
    flip_bit(tmp_path / location.segment, location.offset + 30)
    (bad,) = bad_blocks(capsys, tmp_path)
    assert (bad["offset"], bad["reason"]) == (location.offset, "record header damaged")
    assert bad["key"] == (key_of(1).hex() if sealed else None), "only a footer can still name it"


def test_two_records_that_changed_places_disagree_with_the_footer(tmp_path, capsys):
    first, second = fill(tmp_path, range(2))
    path = tmp_path / first.segment
    content = path.read_bytes()
    start, middle, end = first.offset, second.offset, second.offset + second.nbytes
    path.write_bytes(content[:start] + content[middle:end] + content[start:middle] + content[end:])
    bad = bad_blocks(capsys, tmp_path)
    assert [(b["offset"], b["reason"]) for b in bad] == [
        (first.offset, "footer and record disagree"),
        (second.offset, "footer and record disagree"),
    ]


def test_a_zeroed_page_is_found(tmp_path, capsys):
    location = fill(tmp_path, range(3))[0]
    path = tmp_path / location.segment
    content = bytearray(path.read_bytes())
    content[location.offset : location.offset + PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(content)
    (bad,) = bad_blocks(capsys, tmp_path)
    assert (bad["offset"], bad["reason"]) == (location.offset, "record header damaged")


def test_a_damaged_footer_is_reported_and_its_records_are_read(tmp_path, capsys):
    location = fill(tmp_path, range(3))[-1]
    path = tmp_path / location.segment
    flip_bit(path, location.offset + location.nbytes + 2)
    (bad,) = bad_blocks(capsys, tmp_path)
    assert bad["offset"] == location.offset + location.nbytes
    assert "footer" in bad["reason"]


def test_a_segment_cut_off_in_a_record_names_that_record(tmp_path, capsys):
    location = fill(tmp_path, range(3))[-1]
    os.truncate(tmp_path / location.segment, location.offset + HEADER_BYTES + 100)
    (bad,) = bad_blocks(capsys, tmp_path)
    assert bad["offset"] == location.offset
    assert "cut off" in bad["reason"]


def test_a_segment_cut_off_between_records_is_whole_as_far_as_it_goes(tmp_path, capsys):
    location = fill(tmp_path, range(3))[-1]
    os.truncate(tmp_path / location.segment, location.offset)
    assert answer_of(capsys, "verify", tmp_path)["blocks"] == 2


def test_files_that_are_no_segments_are_named(tmp_path, capsys):
    fill(tmp_path, range(1))
    (tmp_path / "w0.foreign.000001.kv").write_bytes(b"x" * 9000)
    (bad,) = bad_blocks(capsys, tmp_path)
    assert (bad["segment"], bad["reason"]) == ("w0.foreign.000001.kv", "no segment header")


def test_a_segment_under_another_ones_name_is_named(tmp_path, capsys):
    fill(tmp_path, range(1))
    (name,) = segments(tmp_path)
    os.rename(tmp_path / name, tmp_path / "w9.writer.000001.kv")
    (bad,) = bad_blocks(capsys, tmp_path)
    assert (bad["segment"], bad["reason"]) == ("w9.writer.000001.kv", "header and file name disagree")


@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_bit_of_a_segment_is_found(tmp_path, capsys, seed):
    """But for bytes that mean nothing: padding after a block's last byte."""
    location = fill(tmp_path, range(2))[0]
    path = tmp_path / location.segment
    padding = {
        place
        for record in range(2)
        for place in range(
            PAGE_BYTES + record * location.nbytes + HEADER_BYTES + SMALL.full_block_bytes,
            PAGE_BYTES + (record + 1) * location.nbytes,
        )
    }
    places = [place for place in range(path.stat().st_size) if place not in padding]
    flip_bit(path, random.Random(seed).choice(places))
    assert bad_blocks(capsys, tmp_path)


class _FailingFiles(PosixFiles):
    """One sector cannot be read."""

    def __init__(self, sector: int) -> None:
        self.sector = sector

    def preadv(self, fd, views, offset):
        if offset <= self.sector < offset + sum(map(len, views)):
            raise OSError(5, "Input/output error")
        return super().preadv(fd, views, offset)


def test_a_sector_that_cannot_be_read_costs_its_own_block_only(tmp_path):
    locations = fill(tmp_path, range(40))  # so many that the end, which a scan reads, lies elsewhere
    files = _FailingFiles(locations[1].offset + HEADER_BYTES)
    found = verify_store(tmp_path, files, num_threads=2, progress=lambda nbytes: None)
    (bad,) = found.bad_blocks
    assert (bad.offset, bad.fault.reason) == (locations[1].offset, "cannot be read: Input/output error")
    assert found.num_records == 40


def test_progress_counts_every_record_once(tmp_path):
    locations = fill(tmp_path, range(3000), layout=LAYOUTS["whole pages"])
    seen: list[int] = []
    verify_store(tmp_path, PosixFiles(), num_threads=3, progress=seen.append)
    assert len(seen) > 1, "the store is read in several pieces"
    assert sum(seen) == sum(location.nbytes for location in locations)

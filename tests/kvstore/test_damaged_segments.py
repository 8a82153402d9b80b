"""A damaged segment: exact bytes or a counted miss, for a store that is open and for one opened anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.block_record import record_header_bytes
from kvstore.direct_io import aligned_buffer
from kvstore.files import PosixFiles
from kvstore.keys import BlockKey
from kvstore.layout import PAGE_BYTES
from kvstore.segment_contents import BadSegment
from kvstore.segment_scan import scan_segments
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockLocation, BlockRead, ReadStatus
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, key_of, make_write, same_block, write_all

POSIX = PosixFiles()
NUM_BLOCKS = 4
HEADER_BYTES = record_header_bytes(SMALL)
RECORD_BYTES = HEADER_BYTES + SMALL.slot_bytes
RECORDS_END = PAGE_BYTES + NUM_BLOCKS * RECORD_BYTES
TRAILER = RECORDS_END + PAGE_BYTES
FILE_BYTES = TRAILER + PAGE_BYTES
FIRST, SECOND = "w0.first.000001.kv", "w0.second.000001.kv"
BLOCKS = {FIRST: range(NUM_BLOCKS), SECOND: range(100, 100 + NUM_BLOCKS)}
NUMBERS = [number for numbers in BLOCKS.values() for number in numbers]


def record_at(index: int) -> int:
    return PAGE_BYTES + index * RECORD_BYTES


def open_ssd(directory: Path, writer_id: str = "reader") -> SsdStore:
    return SsdStore(directory, SMALL, writer_id=writer_id, io_threads=1)


@dataclass
class Damaged:
    """Two segments of four blocks each, and a store that had read them before they were damaged."""

    directory: Path
    store: SsdStore
    locations: dict[int, BlockLocation]

    def flip(self, name: str, offset: int, bit: int = 0) -> None:
        content = bytearray((self.directory / name).read_bytes())
        content[offset] ^= 1 << bit
        self.put(name, bytes(content))

    def put(self, name: str, content: bytes) -> None:
        """In place: who has the file open sees it too."""
        with (self.directory / name).open("r+b") as file:
            file.write(content)
            file.truncate(len(content))

    def found(self) -> set[int]:
        """Blocks that a reader with the old locations gets; the same by an open store and by a new one
        that has to open the segments first, unless only the segment's header is damaged."""
        by_open = self._read(self.store)
        with closing(open_ssd(self.directory)) as store:
            by_new = self._read(store)
        assert by_new <= by_open
        return by_new

    def recovered(self) -> set[int]:
        """Blocks that are found without any location."""
        numbers = {key_of(number): number for number in NUMBERS}
        reads = []
        for segment in scan_segments(self.directory, POSIX):
            if isinstance(segment, BadSegment):
                assert segment.reason
                continue
            for i in range(len(segment)):
                assert segment.key(i) in numbers
                assert segment.parent(i) == key_of(numbers[segment.key(i)] - 1)
                reads.append(read_of(segment.key(i), segment.location(i)))
        with closing(open_ssd(self.directory)) as store:
            return {numbers[read.key] for read in read_checked(store, reads, numbers)}

    def _read(self, store: SsdStore) -> set[int]:
        numbers = {key_of(number): number for number in NUMBERS}
        reads = [read_of(key_of(number), location) for number, location in self.locations.items()]
        return {numbers[read.key] for read in read_checked(store, reads, numbers)}


def read_of(key: BlockKey, location: BlockLocation) -> BlockRead:
    return BlockRead(key, location, aligned_buffer(SMALL.slot_bytes))


def read_checked(
    store: SsdStore, reads: list[BlockRead], numbers: dict[BlockKey, int]
) -> Iterator[BlockRead]:
    """The reads that succeeded, every byte of them right; the others are misses, and counted."""
    before = store.figures()
    results = store.read(reads, PLENTY_S)
    missed = [result.status for result in results if result.status is not ReadStatus.OK]
    assert set(missed) <= {ReadStatus.MISSING, ReadStatus.CORRUPT}
    after = store.figures()
    for status in (ReadStatus.MISSING, ReadStatus.CORRUPT):
        name = f"reads_{status.value}"
        assert after[name] - before[name] == missed.count(status)
    for read, result in zip(reads, results, strict=True):
        if result.status is ReadStatus.OK:
            assert same_block(SMALL, read.into, make_write(SMALL, numbers[read.key]).data)
            yield read


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The two segments as they were written."""
    directory = tmp_path_factory.mktemp("whole")
    locations = {}
    for name, numbers in BLOCKS.items():
        with closing(open_ssd(directory, name.split(".")[1])) as store:
            written = write_all(store, [make_write(SMALL, number) for number in numbers])
        assert {location.segment for location in written} == {name}
        assert (directory / name).stat().st_size == FILE_BYTES
        locations |= dict(zip(numbers, written, strict=True))
    return directory, locations


@pytest.fixture
def damaged(whole, tmp_path):
    directory = tmp_path / "store"
    shutil.copytree(whole[0], directory)
    with closing(open_ssd(directory)) as store:
        yield warmed(Damaged(directory, store, whole[1]))


def warmed(damaged: Damaged) -> Damaged:
    assert damaged.found() == damaged.recovered() == set(NUMBERS)
    return damaged


def all_but(*lost: int) -> set[int]:
    return set(NUMBERS) - set(lost)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("offset", [0, 9, 12, 17, 200, PAGE_BYTES // 2, PAGE_BYTES - 1])
def test_a_flip_in_the_segments_header_takes_the_segment_away(damaged, offset, sealed):
    if not sealed:
        damaged.put(FIRST, (damaged.directory / FIRST).read_bytes()[:RECORDS_END])
    damaged.flip(FIRST, offset)
    assert damaged.found() == damaged.recovered() == set(BLOCKS[SECOND])


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("offset", [0, 4, 8, 24, 40, 48, 52, 56, 71, 72, HEADER_BYTES - 1])
def test_a_flip_in_a_records_header_loses_that_record(damaged, offset, sealed):
    if not sealed:
        damaged.put(FIRST, (damaged.directory / FIRST).read_bytes()[:RECORDS_END])
    damaged.flip(FIRST, record_at(1) + offset)
    assert damaged.found() == damaged.recovered() == all_but(1)


@pytest.mark.parametrize("byte", [0, SMALL.layer_block_bytes, 4096, SMALL.full_block_bytes - 1])
def test_a_flip_in_the_data_loses_that_block(damaged, byte):
    damaged.flip(FIRST, record_at(2) + HEADER_BYTES + byte)
    assert damaged.found() == damaged.recovered() == all_but(2)


@pytest.mark.parametrize("byte", [SMALL.full_block_bytes, SMALL.slot_bytes - 1])
def test_a_flip_in_the_padding_harms_nobody(damaged, byte):
    damaged.flip(FIRST, record_at(2) + HEADER_BYTES + byte)
    assert damaged.found() == damaged.recovered() == all_but()


@pytest.mark.parametrize(
    "offset",
    [RECORDS_END + at for at in (0, 16, 64, 80, 128, 140, 150, PAGE_BYTES - 1)]
    + [TRAILER + at for at in (0, 8, 15, 16, 100, PAGE_BYTES - 1)],
)
def test_a_flip_in_the_footer_costs_time_and_no_block(damaged, offset):
    damaged.flip(FIRST, offset)
    assert damaged.found() == damaged.recovered() == all_but()
    sealed = {segment.name: segment.sealed for segment in scan_segments(damaged.directory, POSIX)}
    assert sealed == {FIRST: False, SECOND: True}


BOUNDARIES = sorted(
    {0, PAGE_BYTES, RECORDS_END, TRAILER, FILE_BYTES}
    | {record_at(i) for i in range(NUM_BLOCKS)}
    | {record_at(i) + HEADER_BYTES for i in range(NUM_BLOCKS)}
    | {record_at(i) + HEADER_BYTES + SMALL.full_block_bytes for i in range(NUM_BLOCKS)}
)


@pytest.mark.parametrize("distance", [-1, 0, 1])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_segment_cut_off_anywhere_keeps_the_records_before(damaged, boundary, distance):
    nbytes = boundary + distance
    if nbytes < 0:
        return
    content = (damaged.directory / FIRST).read_bytes()
    damaged.put(FIRST, (content + b"\0")[:nbytes])
    whole_bytes = HEADER_BYTES + SMALL.full_block_bytes
    kept = {i for i in range(NUM_BLOCKS) if record_at(i) + whole_bytes <= nbytes}
    assert damaged.found() == damaged.recovered() == kept | set(BLOCKS[SECOND])


def test_two_swapped_segments_are_found_again_and_old_locations_miss(damaged):
    one, other = ((damaged.directory / name).read_bytes() for name in (FIRST, SECOND))
    damaged.put(FIRST, other)
    damaged.put(SECOND, one)
    assert damaged.found() == set()
    assert damaged.recovered() == all_but()


def test_segments_whose_names_are_swapped_are_found_again(damaged):
    first, second, spare = (damaged.directory / name for name in (FIRST, SECOND, "spare"))
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    assert damaged.found() == set()
    assert damaged.recovered() == all_but()


@pytest.mark.parametrize("page", range(FILE_BYTES // PAGE_BYTES))
def test_a_page_of_zeros_loses_what_it_held(damaged, page):
    start = page * PAGE_BYTES
    content = bytearray((damaged.directory / FIRST).read_bytes())
    content[start : start + PAGE_BYTES] = bytes(PAGE_BYTES)
    damaged.put(FIRST, bytes(content))
    if page == 0:
        lost = set(BLOCKS[FIRST])
    elif start < RECORDS_END:
        lost = {(start - PAGE_BYTES) // RECORD_BYTES}
    else:
        lost = set()
    assert damaged.found() == damaged.recovered() == all_but(*lost)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (3, 0), (2, 3)])
@pytest.mark.parametrize("into", [FIRST, SECOND])
def test_a_record_that_stands_elsewhere_too_is_itself_and_no_other(damaged, into, source, target, sealed):
    content = (damaged.directory / FIRST).read_bytes()
    record = content[record_at(source) : record_at(source + 1)]
    victim = bytearray((damaged.directory / into).read_bytes())
    victim[record_at(target) : record_at(target + 1)] = record
    damaged.put(into, bytes(victim if sealed else victim[:RECORDS_END]))
    overwritten = BLOCKS[into][target]
    assert damaged.found() == damaged.recovered() == all_but(overwritten)


def test_a_record_after_the_last_one_of_an_unsealed_segment_is_itself(damaged):
    content = (damaged.directory / FIRST).read_bytes()[:RECORDS_END]
    damaged.put(FIRST, content + content[record_at(1) : record_at(2)])
    assert damaged.found() == damaged.recovered() == all_but()


@pytest.fixture(scope="module")
def kept_damaged(whole, tmp_path_factory):
    """One store for many examples; each puts the file back."""
    directory = tmp_path_factory.mktemp("kept") / "store"
    shutil.copytree(whole[0], directory)
    with closing(open_ssd(directory)) as store:
        yield warmed(Damaged(directory, store, whole[1]))


@given(
    st.lists(st.tuples(st.integers(0, FILE_BYTES - 1), st.integers(0, 7)), min_size=1, max_size=4),
    st.integers(0, FILE_BYTES),
)
def test_no_damage_at_all_gives_wrong_bytes(kept_damaged, flips, nbytes):
    content = (kept_damaged.directory / FIRST).read_bytes()
    try:
        for offset, bit in flips:
            kept_damaged.flip(FIRST, offset, bit)
        assert kept_damaged.found() >= set(BLOCKS[SECOND])
        assert kept_damaged.recovered() >= kept_damaged.found()
        kept_damaged.put(FIRST, (kept_damaged.directory / FIRST).read_bytes()[:nbytes])
        assert kept_damaged.found() >= set(BLOCKS[SECOND])
        assert kept_damaged.recovered() >= kept_damaged.found()
    finally:
        kept_damaged.put(FIRST, content)

"""A writer that is stopped at every single system call of a write, a rotation and an eviction.

After each stop the directory is opened anew: every block that can be read is byte-exact, and every block
whose location the writer was told before the stop is there. With flushed durabilities the same holds after
a power cut that takes everything that was not flushed.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from kvstore.files import PosixFiles
from kvstore.keys import BlockKey
from kvstore.prefix_index import PrefixIndex
from kvstore.segment_contents import SegmentContents
from kvstore.segment_scan import scan_segments
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockLocation, ReadStatus
from kvstore.store_owner import StoreOwner
from tests.kvstore.kv_blocks import (
    PLENTY_S,
    SMALL,
    WEIGHTS,
    key_of,
    make_read,
    make_write,
    random_block,
    same_block,
)
from tests.kvstore.stoppable_files import StoppableFiles, Stopped, VolatileFiles

BATCHES = ([0, 1, 2], [3], [4, 5, 6, 7], [8, 9])
"""Some batches end a segment, some go into the next one."""
SEGMENT_BYTES = 60_000
ALL = [number for batch in BATCHES for number in batch]


def write_story(directory: Path, files: StoppableFiles, durability: str) -> dict[int, BlockLocation]:
    """What a writer does in its life; the blocks whose locations it was told until it was stopped."""
    told: dict[int, BlockLocation] = {}
    with suppress(Stopped, Exception):
        store = SsdStore(
            directory,
            SMALL,
            writer_id="w",
            io_threads=2,
            durability=durability,
            segment_bytes=SEGMENT_BYTES,
            files=files,
        )
        for batch in BATCHES:
            locations = store.write([make_write(SMALL, number) for number in batch], PLENTY_S)
            told |= {n: at for n, at in zip(batch, locations, strict=True) if at is not None}
        store.close()
    return told


def blocks_found(directory: Path) -> dict[BlockKey, BlockLocation]:
    """By key, as a process finds them that opens the directory."""
    found: dict[BlockKey, BlockLocation] = {}
    for contents in scan_segments(directory, PosixFiles()):
        if isinstance(contents, SegmentContents):
            found |= {contents.key(i): contents.location(i) for i in range(len(contents))}
    return found


def read_back(directory: Path, numbers: Iterable[int]) -> set[int]:
    """Which of these blocks a process finds and reads; whatever reads back is what was written."""
    found = blocks_found(directory)
    wanted = [number for number in numbers if key_of(number) in found]
    reads = [make_read(SMALL, number, found[key_of(number)]) for number in wanted]
    store = SsdStore(
        directory, SMALL, writer_id="reader", io_threads=2, durability="none", segment_bytes=SEGMENT_BYTES
    )
    results = store.read(reads, PLENTY_S)
    store.close()
    exact = set()
    for number, read, result in zip(wanted, reads, results, strict=True):
        assert result.status in (ReadStatus.OK, ReadStatus.CORRUPT, ReadStatus.MISSING)
        if result.status is ReadStatus.OK:
            assert same_block(SMALL, read.into, random_block(SMALL, number)), number
            exact.add(number)
    return exact


def calls_of_the_whole_story(directory: Path, durability: str) -> int:
    files = StoppableFiles()
    told = write_story(directory, files, durability)
    assert len(told) == sum(map(len, BATCHES))
    assert len(list(directory.glob("*.kv"))) > 1, "the story has no rotation"
    return files.num_calls


@pytest.mark.parametrize("half", [False, True], ids=["nothing of it", "half of it"])
@pytest.mark.parametrize("durability", ["none", "data", "full"])
def test_a_writer_killed_at_any_call_loses_nothing_it_was_told_of(
    tmp_path: Path, durability: str, half: bool
) -> None:
    num_calls = calls_of_the_whole_story(tmp_path / "whole", durability)
    for stop_at in range(1, num_calls + 1):
        directory = tmp_path / str(stop_at)
        told = write_story(directory, StoppableFiles(stop_at, half=half), durability)
        assert told.keys() <= read_back(directory, ALL), stop_at


@pytest.mark.parametrize("half", [False, True], ids=["nothing of it", "half of it"])
@pytest.mark.parametrize(("durability", "names_too"), [("data", False), ("full", True)])
def test_a_power_cut_at_any_call_takes_nothing_that_was_reported_durable(
    tmp_path: Path, durability: str, names_too: bool, half: bool
) -> None:
    num_calls = calls_of_the_whole_story(tmp_path / "whole", durability)
    for stop_at in range(1, num_calls + 1):
        directory = tmp_path / str(stop_at)
        files = VolatileFiles(stop_at, half=half)
        told = write_story(directory, files, durability)
        files.lose_power(names_too=names_too)
        assert told.keys() <= read_back(directory, ALL), stop_at


def test_without_durability_a_power_cut_may_take_blocks_but_never_gives_wrong_ones(tmp_path: Path) -> None:
    num_calls = calls_of_the_whole_story(tmp_path / "whole", "none")
    lost = 0
    for stop_at in range(1, num_calls + 1):
        directory = tmp_path / str(stop_at)
        files = VolatileFiles(stop_at)
        told = write_story(directory, files, "none")
        files.lose_power(names_too=True)
        lost += len(told.keys() - read_back(directory, ALL))
    assert lost > 0, "the power cut took nothing, so the tests above show nothing"


def evict_one_segment(directory: Path, files: StoppableFiles) -> None:
    """What an owner does from opening to closing."""
    with suppress(Stopped, Exception):
        owner = StoreOwner(directory, capacity_bytes=1 << 30, reserve_bytes=0, lease_ttl_s=5.0, files=files)
        index = PrefixIndex()
        owner.recover(index, SMALL, WEIGHTS)
        names = index.victims(1, WEIGHTS)
        for name in names:
            index.forget_segment(name)
        owner.unlink(names)
        owner.close()


def test_an_owner_killed_at_any_call_of_an_eviction_leaves_every_other_block_readable(tmp_path: Path) -> None:
    def written(name: str) -> Path:
        directory = tmp_path / name
        write_story(directory, StoppableFiles(), "none")
        return directory

    files = StoppableFiles()
    before = blocks_found(written("whole"))
    evict_one_segment(tmp_path / "whole", files)
    evicted = before.keys() - blocks_found(tmp_path / "whole").keys()
    assert 0 < len(evicted) < len(before)
    kept = {number for number in range(len(before)) if key_of(number) not in evicted}
    for stop_at in range(1, files.num_calls + 1):
        directory = written(str(stop_at))
        evict_one_segment(directory, StoppableFiles(stop_at))
        assert kept <= read_back(directory, ALL), stop_at

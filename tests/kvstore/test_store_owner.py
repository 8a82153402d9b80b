import errno
import logging
import math
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from kvstore.errors import StoreError
from kvstore.files import PosixFiles
from kvstore.keys import WeightsId
from kvstore.prefix_index import PrefixIndex
from kvstore.ssd_store import SsdStore
from kvstore.store_owner import CONFIRM_S, SHARE_OF_FREE, StoreOwner
from tests.kvstore.kv_blocks import LAYOUTS, SMALL, make_write, write_all
from tests.kvstore.stopped_process import stop_process

W0, W1 = WeightsId("w0"), WeightsId("w1")
DEADLINE_S = 60.0


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class RefusingFiles(PosixFiles):
    """A directory that takes no new file, or does not give up what it has."""

    def __init__(self, number):
        self.number = number

    def open(self, path, flags, mode=0o644):
        if flags & os.O_CREAT:
            raise OSError(self.number, os.strerror(self.number))
        return super().open(path, flags, mode)


class UnremovableFiles(PosixFiles):
    def unlink(self, path):
        if path.name.endswith(".kv"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        super().unlink(path)


class Directory:
    """A store directory, and owners of it that are closed at the end."""

    def __init__(self, path):
        self.path = path
        self.owners = []

    def owner(self, *, capacity_bytes=1000, reserve_bytes=100, ttl_s=3600.0, files=None, **kwargs):
        owner = StoreOwner(
            self.path,
            capacity_bytes=capacity_bytes,
            reserve_bytes=reserve_bytes,
            lease_ttl_s=ttl_s,
            files=files or PosixFiles(),
            segment_bytes=kwargs.pop("segment_bytes", 100),
            **kwargs,
        )
        self.owners.append(owner)
        return owner

    def segment(self, name, nbytes):
        (self.path / name).write_bytes(b"x" * nbytes)

    def segments(self):
        return sorted(path.name for path in self.path.glob("*.kv"))


@pytest.fixture
def directory(tmp_path):
    directory = Directory(tmp_path)
    yield directory
    for owner in directory.owners:
        owner.close()


@pytest.fixture
def index():
    index = PrefixIndex()
    yield index
    index.check()


def wait_until(condition):
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not come to be in time"
        time.sleep(0.01)


def test_the_first_process_owns_the_store_and_the_second_does_not(directory):
    assert directory.owner().holds_lease
    assert not directory.owner().holds_lease


def test_a_store_directory_that_is_not_there_is_made(tmp_path):
    directory = Directory(tmp_path / "deep" / "store")
    owner = directory.owner()
    assert owner.holds_lease
    owner.close()


def test_what_lies_beyond_capacity_and_reserve_is_too_much(directory, index):
    owner = directory.owner(capacity_bytes=1000, reserve_bytes=100)
    for number in range(4):
        directory.segment(f"w0.v.{number:06d}.kv", 250)
    owner.refresh(index)
    assert owner.limit_bytes == 900
    assert owner.excess_bytes(index) == 100
    for name in index.victims(100, W1):
        index.forget_segment(name)
        assert owner.unlink([name]) == 250
    assert owner.excess_bytes(index) == 0


def test_without_the_lease_nothing_is_too_much_and_nothing_is_removed(directory, index):
    directory.segment("w0.v.000001.kv", 5000)
    directory.owner()
    second = directory.owner()
    second.refresh(index)
    assert index.stored_bytes == 5000
    assert second.excess_bytes(index) == 0
    assert second.unlink(["w0.v.000001.kv"]) == 0
    assert directory.segments() == ["w0.v.000001.kv"]


def test_a_waiting_process_becomes_the_owner_when_the_other_ends_and_looks_what_is_there(directory, index):
    first, second = directory.owner(ttl_s=1.0), directory.owner(ttl_s=1.0)
    second.refresh(index)
    directory.segment("w0.first.000001.kv", 950)
    first.close()
    wait_until(lambda: second.holds_lease)
    assert second.excess_bytes(index) == 50
    assert index.segment_names() == ("w0.first.000001.kv",)


def test_a_refresh_notes_growth_and_forgets_what_vanished(directory, index):
    owner = directory.owner()
    directory.segment("w0.v.000001.kv", 10)
    directory.segment("w0.v.000002.kv", 20)
    owner.refresh(index)
    directory.segment("w0.v.000002.kv", 25)
    (directory.path / "w0.v.000001.kv").unlink()
    owner.refresh(index)
    assert index.segment_names() == ("w0.v.000002.kv",)
    assert index.stored_bytes == 25


def test_a_segment_that_a_cached_listing_lacks_is_not_forgotten(directory, index):
    class StaleFiles(PosixFiles):
        def list(self, path):
            return [name for name in super().list(path) if name != "w0.far.000001.kv"]

    owner = directory.owner(files=StaleFiles())
    directory.segment("w0.far.000001.kv", 30)
    index.note_segment("w0.far.000001.kv", W0, 10, math.inf)
    owner.refresh(index)
    assert index.stored_bytes == 30


def test_only_segments_are_counted_and_only_segments_are_removed(directory, index):
    owner = directory.owner()
    for name in ("notes.txt", "photos.kv", "w0.v.000001.kv.tmp"):
        directory.segment(name, 5000)
    owner.refresh(index)
    owner.recover(index, SMALL, W0)
    assert index.stored_bytes == 0
    with pytest.raises(AssertionError):
        owner.unlink(["../w0.v.000001.kv"])


def test_files_that_are_no_segments_inside_are_counted_by_reason_and_can_be_evicted(directory, index, caplog):
    owner = directory.owner()
    directory.segment("w0.v.000001.kv", 5000)
    directory.segment("w0.v.000002.kv", 6000)
    report = owner.recover(index, SMALL, W0)
    assert sum(report.bad_segments.values()) == 2
    assert (report.num_segments, report.num_blocks, report.num_other_segments) == (0, 0, 0)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    assert index.stored_bytes == 11_000
    assert sorted(index.victims(10**9, W0)) == directory.segments()


def test_a_capacity_with_no_room_for_a_segment_is_refused_naming_the_least(directory):
    with pytest.raises(StoreError, match=r"kvstore\.capacity_bytes is 299: it must be at least 300"):
        directory.owner(capacity_bytes=299, reserve_bytes=200, segment_bytes=100)
    directory.owner(capacity_bytes=300, reserve_bytes=200, segment_bytes=100)


def test_without_a_capacity_most_of_what_is_free_or_the_stores_own_is_the_limit(directory):
    directory.segment("w0.v.000001.kv", 4 << 20)
    owner = directory.owner(capacity_bytes=None, reserve_bytes=1 << 20)
    expected = SHARE_OF_FREE * (shutil.disk_usage(directory.path).free + (4 << 20)) - (1 << 20)
    assert owner.limit_bytes == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_unwritable_directory_costs_the_lease_and_one_warning(directory, index, caplog, number):
    directory.segment("w0.v.000001.kv", 5000)
    owner = directory.owner(files=RefusingFiles(number))
    owner.recover(index, SMALL, W0)
    owner.refresh(index)
    assert not owner.holds_lease
    assert owner.excess_bytes(index) == 0
    warnings = [record for record in caplog.records if "lease" in record.message]
    assert len(warnings) == 1
    assert os.strerror(number) in caplog.text


def test_a_directory_that_cannot_be_is_no_error(tmp_path, index, caplog):
    (tmp_path / "file").write_bytes(b"")
    directory = Directory(tmp_path / "file" / "store")
    owner = directory.owner(capacity_bytes=None)
    owner.refresh(index)
    assert owner.recover(index, SMALL, W0).num_segments == 0
    assert (owner.holds_lease, owner.limit_bytes) == (False, 0)
    assert "the job goes on" in caplog.text
    owner.close()


def test_a_segment_that_will_not_go_costs_a_warning_and_the_next_one_goes(directory, caplog):
    owner = directory.owner(files=UnremovableFiles())
    directory.segment("w0.v.000001.kv", 10)
    assert owner.unlink(["w0.v.000001.kv", "w0.gone.000001.kv"]) == 0
    assert "removing w0.v.000001.kv" in caplog.text


def test_a_superseded_owner_stops_removing_after_a_moment(directory):
    clock = Clock()
    first = directory.owner(clock=clock)
    for number in (1, 2, 3):
        directory.segment(f"w0.v.{number:06d}.kv", 10)

    class OvertakingFiles(PosixFiles):
        """Another process creates the next epoch while the first segment is being removed."""

        def unlink(self, path):
            super().unlink(path)
            (path.parent / "lease.00000002").write_bytes(b"")
            clock.now_s += 0.6 * CONFIRM_S

    first._files = OvertakingFiles()
    assert first.unlink([f"w0.v.{number:06d}.kv" for number in (1, 2, 3)]) == 20
    assert directory.segments() == ["w0.v.000003.kv"]
    assert not first.holds_lease


def _own(pipe, path, ttl_s):
    owner = StoreOwner(
        path,
        capacity_bytes=1000,
        reserve_bytes=0,
        lease_ttl_s=ttl_s,
        files=PosixFiles(),
        clock=time.monotonic,
        segment_bytes=100,
    )
    pipe.send(owner.holds_lease)
    while True:
        pipe.send(owner.unlink(pipe.recv()))


def test_an_owner_that_was_stopped_removes_nothing_once_another_has_taken_over(directory, tmp_path):
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_own, args=[theirs, tmp_path, 1.5], daemon=True)
    process.start()
    try:
        assert pipe.poll(DEADLINE_S)
        assert pipe.recv() is True
        second = directory.owner(ttl_s=1.5)
        directory.segment("w0.v.000001.kv", 10)
        stop_process(process.pid)
        pipe.send(["w0.v.000001.kv"])
        wait_until(lambda: second.holds_lease)
        os.kill(process.pid, signal.SIGCONT)
        assert pipe.poll(DEADLINE_S)
        assert pipe.recv() == 0
        assert directory.segments() == ["w0.v.000001.kv"]
        assert second.unlink(["w0.v.000001.kv"]) == 10
    finally:
        process.kill()
        process.join(DEADLINE_S)


def test_a_clean_end_lets_the_next_process_own_the_store_at_once(directory):
    directory.owner().close()
    assert directory.owner().holds_lease


def test_segments_in_another_layout_are_counted_and_not_indexed(directory, index):
    for name, layout, weights_id in (("a", SMALL, W0), ("b", SMALL, W1), ("c", LAYOUTS["odd bytes"], W0)):
        store = SsdStore(directory.path, layout, writer_id=name, io_threads=1, durability="none")
        write_all(store, [make_write(layout, number, weights_id) for number in range(3)])
        store.close()
    report = directory.owner().recover(index, SMALL, W0)
    assert (report.num_segments, report.num_blocks, report.num_other_segments) == (1, 3, 2)
    assert index.stored_bytes == sum(path.stat().st_size for path in Path(directory.path).glob("*.kv"))
    assert {name.split(".")[1] for name in index.segment_names()} == {"a", "b", "c"}

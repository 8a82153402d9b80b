"""What a reader learns of blocks that others append while it looks on."""

from __future__ import annotations

import pytest

from kvstore.errors import StoreError
from kvstore.files import PosixFiles
from kvstore.keys import WeightsId
from kvstore.segment_follower import SegmentFollower
from kvstore.ssd_store import SsdStore
from tests.kvstore.kv_blocks import SMALL, WEIGHTS, key_of, make_write, write_all


@pytest.fixture
def writer(tmp_path):
    store = SsdStore(tmp_path, SMALL, writer_id="other", io_threads=1)
    yield store
    store.close()


def follow(path, layout=SMALL):
    return SegmentFollower(path, layout, PosixFiles(), writer_id="own")


def new_keys(follower, weights_id=WEIGHTS):
    return [contents.key(record) for contents, records in follower.grown(weights_id) for record in records]


def test_each_block_is_told_once_and_as_soon_as_it_is_there(tmp_path, writer):
    follower = follow(tmp_path)
    assert new_keys(follower) == []
    for number in range(3):
        write_all(writer, [make_write(SMALL, number)])
        assert new_keys(follower) == [key_of(number)]
        assert new_keys(follower) == []


def test_a_segment_that_was_ended_meanwhile_tells_its_rest(tmp_path, writer):
    follower = follow(tmp_path)
    write_all(writer, [make_write(SMALL, 0)])
    assert new_keys(follower) == [key_of(0)]
    write_all(writer, [make_write(SMALL, 1)])
    writer.close()
    assert new_keys(follower) == [key_of(1)]


def test_own_blocks_other_weights_and_other_layouts_are_left_out(tmp_path, writer):
    write_all(writer, [make_write(SMALL, 0, WeightsId("w1"))])
    own = SsdStore(tmp_path, SMALL, writer_id="own", io_threads=1)
    write_all(own, [make_write(SMALL, 1)])
    own.close()
    assert new_keys(follow(tmp_path)) == []
    assert new_keys(follow(tmp_path), WeightsId("w1")) == [key_of(0)]


def test_files_that_cannot_be_used_are_passed_over(tmp_path, writer):
    (tmp_path / f"{WEIGHTS}.broken.000001.kv").write_bytes(b"?" * 9000)
    write_all(writer, [make_write(SMALL, 0)])
    assert new_keys(follow(tmp_path)) == [key_of(0)]


def test_a_directory_that_is_gone_is_said_in_one_line(tmp_path):
    with pytest.raises(StoreError, match="cannot be listed"):
        follow(tmp_path / "gone").grown(WEIGHTS)

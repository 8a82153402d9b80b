"""What `python -m kvstore stat` tells of real stores, whole and damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kvstore.files import PosixFiles
from kvstore.keys import WeightsId
from kvstore.lease import DirectoryLease
from tests.kvstore.kv_blocks import LAYOUTS, SMALL
from tests.kvstore.tools.small_store import NOW_S, answer_of, fill, segments, table_of

NEW = WeightsId("w1")
WHOLE_PAGES = LAYOUTS["whole pages"]


def test_blocks_and_bytes_are_told_per_format_and_weights(tmp_path, capsys):
    fill(tmp_path, range(3), created_s=NOW_S)
    fill(tmp_path, range(3, 5), created_s=NOW_S + 60, writer_id="other")
    fill(tmp_path, range(5, 6), created_s=NOW_S + 90, weights_id=NEW)
    fill(tmp_path, range(6, 7), layout=WHOLE_PAGES, writer_id="wide")
    answer = answer_of(capsys, "stat", tmp_path)
    assert (answer["segments"], answer["blocks"], answer["bad_segments"]) == (4, 7, {})
    assert answer["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.kv"))
    by_format = {kv_format["kv_format"]: kv_format for kv_format in answer["formats"]}
    assert by_format.keys() == {SMALL.format.digest().hex(), WHOLE_PAGES.format.digest().hex()}
    small = by_format[SMALL.format.digest().hex()]
    assert (small["num_layers"], small["block_bytes"]) == (SMALL.num_layers, SMALL.full_block_bytes)
    newest, oldest = small["weights"]
    assert (newest["weights_id"], newest["blocks"]) == (NEW, 1)
    assert (oldest["weights_id"], oldest["blocks"]) == ("w0", 5)
    assert (oldest["oldest_s"], oldest["newest_s"]) == (NOW_S, NOW_S + 60)
    assert oldest["segments"] == {"sealed": 2, "unsealed": 0}


def test_a_segment_whose_writer_goes_on_is_unsealed(tmp_path, capsys):
    fill(tmp_path, range(2), close=False)
    (versions,) = (kv_format["weights"] for kv_format in answer_of(capsys, "stat", tmp_path)["formats"])
    assert versions[0]["segments"] == {"sealed": 0, "unsealed": 1}
    assert versions[0]["blocks"] == 2


def test_bad_segments_are_counted_by_reason(tmp_path, capsys):
    fill(tmp_path, range(2))
    (tmp_path / "w0.foreign.000001.kv").write_bytes(b"something else" * 1000)
    (tmp_path / "w0.foreign.000002.kv").write_bytes(b"something else" * 1000)
    (tmp_path / "w0.short.000001.kv").write_bytes(b"DPKV")
    (tmp_path / "w0.folder.000001.kv").mkdir()
    answer = answer_of(capsys, "stat", tmp_path)
    bad = answer["bad_segments"]
    assert bad["no segment header"] == {"segments": 2, "bytes": 28000}
    assert sum(counts["segments"] for counts in bad.values()) == 4
    assert answer["blocks"] == 2
    assert "no segment header" in table_of(capsys, "stat", tmp_path)


def test_an_empty_directory_is_an_empty_store(tmp_path, capsys):
    answer = answer_of(capsys, "stat", tmp_path)
    assert (answer["segments"], answer["formats"], answer["lease"]) == (0, [], None)
    assert "empty" in table_of(capsys, "stat", tmp_path)


def test_free_space_is_the_file_systems(tmp_path, capsys):
    answer = answer_of(capsys, "stat", tmp_path)
    space = os.statvfs(tmp_path)
    assert answer["total_bytes"] == space.f_blocks * space.f_frsize
    assert 0 <= answer["free_bytes"] <= answer["total_bytes"]


def test_the_leases_holder_and_heartbeat_are_told(tmp_path, capsys):
    lease = DirectoryLease(tmp_path, ttl_s=30, files=PosixFiles(), clock=time.monotonic)
    lease.step()
    told = answer_of(capsys, "stat", tmp_path)["lease"]
    assert (told["state"], told["pid"], told["on_this_host"]) == ("alive", os.getpid(), True)
    assert abs(time.time() - told["heartbeat_s"]) < 60
    assert f"held by process {os.getpid()} of this host" in table_of(capsys, "stat", tmp_path)
    lease.close()
    assert answer_of(capsys, "stat", tmp_path)["lease"]["state"] == "released"


def test_stat_changes_nothing(tmp_path: Path, capsys):
    fill(tmp_path, range(2))
    before = {name: (tmp_path / name).read_bytes() for name in segments(tmp_path)}
    answer_of(capsys, "stat", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

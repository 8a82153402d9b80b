"""`python -m kvstore gc` drops what it is told to, nothing else, and only as the lease's holder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from kvstore.files import PosixFiles
from kvstore.keys import WeightsId
from kvstore.lease import DirectoryLease, LeaseRecord
from kvstore.process_identity import Process
from kvstore.tools.gc import owned
from tests.kvstore.kv_blocks import LAYOUTS, SMALL, key_of
from tests.kvstore.tools.small_store import NOW_S, answer_of, complaint_of, fill, segments, table_of

DAY_S = 86400
DEADLINE_S = 60.0
VERSIONS = tuple(WeightsId(f"w{i}") for i in range(4))

HOLDER = """
import sys, time
from pathlib import Path
from kvstore.files import PosixFiles
from kvstore.lease import DirectoryLease
lease = DirectoryLease(Path(sys.argv[1]), ttl_s=60, files=PosixFiles(), clock=time.monotonic)
lease.step()
print(lease.held, flush=True)
sys.stdin.read()
"""

HEARTBEAT = """
import pathlib, sys, time
while True:
    time.sleep(0.2)
    pathlib.Path(sys.argv[1]).touch()
"""


@pytest.fixture
def versions(tmp_path):
    """Four versions of two segments each, w0 the oldest, the last one a day old."""
    for i, weights_id in enumerate(VERSIONS):
        created_s = time.time() - (len(VERSIONS) - i) * DAY_S
        for writer in ("a", "b"):
            fill(tmp_path, range(2), weights_id=weights_id, writer_id=writer, created_s=created_s)
    return tmp_path


def weights_left(directory):
    return sorted({name.partition(".")[0] for name in segments(directory)})


def test_named_weights_go_and_what_they_freed_is_told(versions, capsys):
    before = sum(path.stat().st_size for path in versions.glob("*.kv"))
    answer = answer_of(capsys, "gc", versions, "--weights", "w0", "w2")
    assert weights_left(versions) == ["w1", "w3"]
    after = sum(path.stat().st_size for path in versions.glob("*.kv"))
    assert answer["freed_bytes"] == answer["bytes"] == before - after
    assert [(v["weights_id"], v["segments"], v["blocks"]) for v in answer["versions"]] == [
        ("w2", 2, 4),
        ("w0", 2, 4),
    ]


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["--keep-latest", "1"], ["w3"]),
        (["--keep-latest", "9"], ["w0", "w1", "w2", "w3"]),
        (["--older-than", "2.5"], ["w2", "w3"]),
        (["--older-than", "0.5", "--keep-latest", "2"], ["w2", "w3"]),
        (["--older-than", "2.5", "--weights", "w0", "w3"], ["w1", "w2", "w3"]),
        (["--weights", "w3", "--keep-latest", "1"], ["w0", "w1", "w2", "w3"]),
    ],
)
def test_a_version_goes_when_all_conditions_hold(versions, capsys, conditions, left):
    answer_of(capsys, "gc", versions, *conditions)
    assert weights_left(versions) == left


def test_latest_is_counted_in_each_kv_format(versions, capsys):
    fill(versions, range(2), layout=LAYOUTS["whole pages"], writer_id="wide", created_s=NOW_S)
    answer_of(capsys, "gc", versions, "--keep-latest", "1")
    assert segments(versions) == ["w0.wide.000001.kv", "w3.a.000001.kv", "w3.b.000001.kv"]


def test_a_dry_run_drops_nothing_and_takes_no_lease(versions, capsys):
    before = segments(versions)
    answer = answer_of(capsys, "gc", versions, "--keep-latest", "1", "--dry-run")
    assert (answer["segments"], answer["freed_bytes"]) == (6, 0)
    assert segments(versions) == before
    assert not list(versions.glob("lease.*"))
    assert "would free" in table_of(capsys, "gc", versions, "--keep-latest", "1", "--dry-run")


def test_nothing_to_drop_is_fine(versions, capsys):
    assert "nothing to drop" in table_of(capsys, "gc", versions, "--older-than", "100")


def test_orphans_go_and_what_can_be_reached_stays(tmp_path, capsys):
    fill(tmp_path, range(3), writer_id="start")
    fill(tmp_path, range(3, 5), writer_id="next", parent=key_of(2))
    fill(tmp_path, range(11, 13), writer_id="lost", parent=key_of(10))
    fill(tmp_path, range(13, 14), writer_id="lostchild", parent=key_of(12))
    answer = answer_of(capsys, "gc", tmp_path, "--orphans")
    assert answer["orphaned_segments"] == ["w0.lost.000001.kv", "w0.lostchild.000001.kv"]
    assert segments(tmp_path) == ["w0.next.000001.kv", "w0.start.000001.kv"]


def test_unknown_weights_are_wrong_input_and_nothing_goes(versions, capsys):
    before = segments(versions)
    complaint = complaint_of(capsys, "gc", versions, "--weights", "w0", "nobody")
    assert "nobody" in complaint
    assert "w0, w1, w2, w3" in complaint
    assert segments(versions) == before


def test_segments_of_which_nothing_can_be_used_go_on_demand_and_other_files_stay(versions, capsys):
    before = segments(versions)
    (versions / "w0.foreign.000001.kv").write_bytes(b"something else" * 1000)
    (versions / "w0.empty.000001.kv").write_bytes(b"")
    (versions / "notes.kv").write_bytes(b"not ours")
    answer = answer_of(capsys, "gc", versions, "--keep-latest", "9")
    assert answer["bad_segments"] == []
    answer = answer_of(capsys, "gc", versions, "--bad")
    assert answer["bad_segments"] == ["w0.empty.000001.kv", "w0.foreign.000001.kv"]
    assert answer["freed_bytes"] == answer["bytes"] == 14000
    assert segments(versions) == sorted([*before, "notes.kv"])


def test_a_full_disk_is_cleared_by_dropping_versions(tmpfs, capsys):
    directory = tmpfs("size=1m")
    fill(directory, range(4))
    answer_of(capsys, "gc", directory, "--weights", "w0")
    fill(directory, range(4))
    with suppress(OSError), (directory / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    assert answer_of(capsys, "gc", directory, "--weights", "w0")["freed_bytes"] > 0
    assert segments(directory) == []


def test_a_directory_that_takes_no_lease_is_told_at_once_in_one_line(tmpfs, capsys):
    directory = tmpfs("size=1m")
    fill(directory, range(4))
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    began_s = time.monotonic()
    assert "Read-only file system" in complaint_of(capsys, "gc", directory, "--weights", "w0")
    assert time.monotonic() - began_s < DEADLINE_S / 2, "it waited for a lease that cannot be had"
    assert len(segments(directory)) == 1


def test_a_segment_that_will_not_go_is_named(versions, capsys):
    (versions / "w0.folder.000001.kv").mkdir()
    complaint = complaint_of(capsys, "gc", versions, "--bad")
    assert "1 of 1 segments are still there, w0.folder.000001.kv cannot be removed" in complaint


def test_without_a_condition_nothing_is_dropped(versions, capsys):
    assert "--keep-latest" in complaint_of(capsys, "gc", versions)
    assert len(segments(versions)) == 8


def test_a_live_process_that_holds_the_lease_is_named_and_nothing_goes(versions, capsys):
    command = [sys.executable, "-c", HOLDER, str(versions)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        complaint = complaint_of(capsys, "gc", versions, "--keep-latest", "1")
        assert f"process {holder.pid} of this host" in complaint
        assert len(segments(versions)) == 8
    finally:
        holder.kill()
        holder.communicate(timeout=DEADLINE_S)
    answer_of(capsys, "gc", versions, "--keep-latest", "1")
    assert weights_left(versions) == ["w3"], "a holder that is gone is in nobody's way"


def write_lease(directory, beat: int) -> None:
    """A lease that a process of another host holds."""
    elsewhere = replace(Process.this(), host="0123456789 elsewhere")
    record = LeaseRecord("holder", elsewhere, beat, released=False)
    (directory / "lease.00000007").write_bytes(record.encode())


def test_a_silent_holder_on_another_host_is_waited_for_and_then_replaced(versions, capsys):
    write_lease(versions, beat=1)
    started_s = time.monotonic()
    answer_of(capsys, "gc", versions, "--keep-latest", "1", "--lease-ttl", "0.3")
    assert time.monotonic() - started_s >= 0.3
    assert weights_left(versions) == ["w3"]


def test_a_holder_on_another_host_whose_heart_beats_is_refused(versions, capsys):
    write_lease(versions, beat=1)
    command = [sys.executable, "-c", HEARTBEAT, str(versions / "lease.00000007")]
    beating = subprocess.Popen(command)
    try:
        complaint = complaint_of(capsys, "gc", versions, "--keep-latest", "1", "--lease-ttl", "20")
    finally:
        beating.kill()
        beating.wait(DEADLINE_S)
    assert "another host (boot 01234567)" in complaint
    assert len(segments(versions)) == 8


def test_the_lease_is_given_back(versions, capsys):
    answer_of(capsys, "gc", versions, "--keep-latest", "1")
    again = DirectoryLease(versions, ttl_s=60, files=PosixFiles(), clock=time.monotonic)
    again.step()
    assert again.held
    again.close()


def test_two_collectors_do_not_run_at_once(versions):
    with owned(versions, PosixFiles(), lease_ttl_s=30):
        command = [sys.executable, "-m", "kvstore", "gc", str(versions), "--keep-latest", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert f"process {os.getpid()} of this host" in done.stderr
    assert len(segments(versions)) == 8


def test_the_json_is_written_to_a_file_beside_the_table(versions, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("answers") / "gc.json"
    shown = table_of(capsys, "gc", versions, "--weights", "w1", "--json", out)
    assert "weights w1" in shown
    assert json.loads(out.read_text())["versions"][0]["weights_id"] == "w1"
    assert SMALL.format.digest().hex() == json.loads(out.read_text())["versions"][0]["kv_format"]

"""Trajectories come back from parquet as they were, whatever ended the run that wrote them."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import sys
from array import array
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.types import PhaseSeconds
from rollout.errors import UserError
from rollout.records import (
    ROW_GROUP_TRAJECTORIES,
    RecordError,
    TrajectoryWriter,
    iterate_trajectories,
    read_trajectories,
)
from rollout.trajectory_table import SCHEMA, VERSION_KEY, from_table, to_table
from rollout.types import Segment, Trajectory
from tests.rollout.some_trajectories import trajectories, trajectory

A = trajectory(0.0, PhaseSeconds(decode=1.0), sample_index=0)
B = trajectory(0.5, PhaseSeconds(kv_load=0.5, decode=1.5), sample_index=1, error="tool: no")
C = trajectory(0.0, PhaseSeconds(tool=2.0), sample_index=2, segments=(), turns=())

KILLED = """
import os, signal, sys
from pathlib import Path
from rollout.records import TrajectoryWriter
from tests.rollout.test_records import A, B
with TrajectoryWriter(Path(sys.argv[1])) as writer:
    writer.append(0, [A])
    writer.append(1, [B])
    os.kill(os.getpid(), int(sys.argv[2]))
    signal.pause()
"""


def typecodes(segment: Segment) -> str:
    arrays = (segment.token_ids, segment.loss_mask, segment.logprobs, segment.weights_versions)
    return "".join(a.typecode for a in arrays)


@settings(max_examples=80)
@given(st.lists(trajectories(), max_size=4), st.integers(0, 10**6))
def test_any_trajectories_come_back_equal_from_a_table(some, step):
    assert list(from_table(to_table(step, some))) == [(step, t) for t in some]


@settings(max_examples=40)
@given(trajectories())
def test_any_trajectory_survives_pickling(one):
    assert pickle.loads(pickle.dumps(one)) == one


@settings(max_examples=20)
@given(some=st.lists(trajectories(), min_size=1, max_size=4))
def test_any_trajectories_come_back_equal_from_the_file(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("run") / "trajectories.parquet"
    with TrajectoryWriter(path) as writer:
        writer.append(0, some)
    assert read_trajectories(path) == some


def test_arrays_keep_their_types_and_logprobs_every_bit(tmp_path):
    segment = Segment()
    segment.append_sampled([7, 8], [-0.1, float("-inf")], weights_version=3)
    path = tmp_path / "trajectories.parquet"
    with TrajectoryWriter(path) as writer:
        writer.append(0, [trajectory(0.0, PhaseSeconds(), segments=(segment, Segment()))])
    found = read_trajectories(path)[0].segments
    assert [typecodes(s) for s in found] == ["ibfi", "ibfi"]
    assert found[0].logprobs.tobytes() == array("f", [-0.1, float("-inf")]).tobytes()
    found[0].append_given([1])
    found[0].check()


def test_half_a_surrogate_pair_in_an_error_is_escaped_not_fatal():
    ((_, found),) = from_table(to_table(0, [trajectory(0.0, PhaseSeconds(), error="bad \ud800")]))
    assert found.error == "bad \\ud800"


def test_the_file_is_ordinary_parquet_with_a_row_group_a_batch(tmp_path):
    path = tmp_path / "trajectories.parquet"
    with TrajectoryWriter(path) as writer:
        writer.append(0, [A, B])
        writer.append(1, [C])
    table = pq.read_table(path)
    assert table.column("outcome").to_pylist() == ["completed"] * 3
    assert table.column("step").to_pylist() == [0, 0, 1]
    assert table.column("segments")[0].as_py()[0]["token_ids"] == [1, 2, 3, 4, 5]
    assert pq.ParquetFile(path).num_row_groups == 2
    assert [p.name for p in tmp_path.iterdir()] == ["trajectories.parquet"]


def test_large_batches_are_cut_into_row_groups(tmp_path):
    many = [A, B] * ROW_GROUP_TRAJECTORIES
    path = tmp_path / "trajectories.parquet"
    with TrajectoryWriter(path) as writer:
        writer.append(0, many)
    assert pq.ParquetFile(path).num_row_groups == 2
    assert read_trajectories(path) == many


def test_a_finished_step_can_be_read_while_the_run_goes_on(tmp_path):
    path = tmp_path / "trajectories.parquet"
    with TrajectoryWriter(path) as writer:
        writer.append(0, [A])
        assert read_trajectories(path) == [A]
        writer.append(1, [B])
        assert read_trajectories(path, step=1) == [B]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_process_leaves_its_finished_batches_readable(tmp_path, how):
    path = tmp_path / "trajectories.parquet"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(int(how))],
        cwd=Path(__file__).parents[2], capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert list(iterate_trajectories(path)) == [(0, A), (1, B)]
    assert path.exists() == (how == signal.SIGINT)


def test_a_close_cut_short_after_the_rename_shows_nothing_twice(tmp_path):
    path = tmp_path / "trajectories.parquet"
    writer = TrajectoryWriter(path)
    writer.append(0, [A])
    leftover = next((tmp_path / "trajectories.parts").iterdir())
    content = leftover.read_bytes()
    writer.close()
    leftover.parent.mkdir()
    leftover.write_bytes(content)
    assert read_trajectories(path) == [A]


def test_a_half_written_part_is_passed_over(tmp_path):
    path = tmp_path / "trajectories.parquet"
    writer = TrajectoryWriter(path)
    writer.append(0, [A])
    (tmp_path / "trajectories.parts" / "step-000001-000001.parquet.tmp").write_bytes(b"PAR1")
    assert read_trajectories(path) == [A]


@pytest.mark.parametrize("closed", [True, False])
def test_a_resumed_writer_keeps_earlier_steps_and_does_the_others_again(tmp_path, closed):
    path = tmp_path / "trajectories.parquet"
    writer = TrajectoryWriter(path)
    writer.append(0, [A])
    writer.append(1, [B])
    if closed:
        writer.close()
    with TrajectoryWriter(path, first_step=1) as again:
        assert read_trajectories(path) == [A]
        again.append(1, [C])
    assert list(iterate_trajectories(path)) == [(0, A), (1, C)]


def test_a_run_without_a_trajectory_leaves_an_empty_file(tmp_path):
    path = tmp_path / "trajectories.parquet"
    TrajectoryWriter(path).close()
    assert read_trajectories(path) == []


def test_closing_twice_is_harmless(tmp_path):
    path = tmp_path / "trajectories.parquet"
    with TrajectoryWriter(path) as writer:
        writer.append(0, [A])
        writer.close()
    assert read_trajectories(path) == [A]


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path):
    path = tmp_path / "trajectories.parquet"
    many: list[Trajectory] = [A, B, C] * 50
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TrajectoryWriter(path)
    writer.append(0, [A])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1]))
        with pytest.raises(RecordError, match="File too large") as caught, writer:
            writer.append(1, many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert read_trajectories(path) == [A]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write trajectories at"):
        TrajectoryWriter(tmp_path / "file" / "trajectories.parquet")


def test_no_trajectories_no_parquet_and_another_format_are_each_told(tmp_path):
    with pytest.raises(RecordError, match="no trajectories at"):
        read_trajectories(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(RecordError, match="cannot read trajectories at"):
        read_trajectories(tmp_path / "text.parquet")
    later = SCHEMA.with_metadata({VERSION_KEY: b"99"})
    pq.write_table(to_table(0, [A]).cast(later), tmp_path / "later.parquet")
    with pytest.raises(RecordError, match="format 99; this program reads format 1"):
        read_trajectories(tmp_path / "later.parquet")

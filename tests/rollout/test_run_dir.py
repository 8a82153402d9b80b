"""Who gets a run folder, what is refused, and what is never removed."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollout.errors import UserError
from rollout.run_dir import RunDir, RunDirError

HOLDER = """
import sys
from rollout.run_dir import RunDir
RunDir.open(sys.argv[1], overwrite=False)
print("held", flush=True)
sys.stdin.read()
"""


def finished_run(path: Path) -> None:
    with RunDir.open(path, overwrite=False) as run_dir:
        run_dir.write_config("seed: 0\n")
        run_dir.metrics.write_text("{}\n")
        run_dir.checkpoints.mkdir()
        (run_dir.checkpoints / "latest").write_text("step-1")
        run_dir.write_summary({"jct_s": 1.0})


def refusal(path: Path, **how: bool) -> str:
    with pytest.raises(RunDirError) as caught:
        RunDir.open(path, **{"overwrite": False, **how})
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    with RunDir.open(tmp_path / "a" / "b", overwrite=False) as run_dir:
        assert run_dir.path.is_dir()
        assert run_dir.path.is_absolute()
        assert run_dir.trajectories == tmp_path / "a" / "b" / "trajectories.parquet"


def test_its_errors_are_the_users(tmp_path):
    assert issubclass(RunDirError, UserError)


def test_a_finished_run_is_refused_and_left_as_it_is(tmp_path):
    finished_run(tmp_path)
    message = refusal(tmp_path)
    assert "finished run" in message
    assert "overwrite=true" in message
    assert json.loads((tmp_path / "summary.json").read_text()) == {"jct_s": 1.0}


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    finished_run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "plots").mkdir()
    with RunDir.open(tmp_path, overwrite=True) as run_dir:
        assert not run_dir.summary.exists()
        assert not run_dir.checkpoints.exists()
        assert not run_dir.metrics.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".rollout_lock", "notes.txt", "plots"]


def test_overwrite_does_not_follow_a_link_out_of_the_folder(tmp_path):
    run_path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    finished_run(run_path)
    elsewhere.mkdir()
    (elsewhere / "block").write_text("kept")
    (run_path / "kvstore").symlink_to(elsewhere)
    RunDir.open(run_path, overwrite=True).close()
    assert (elsewhere / "block").read_text() == "kept"
    assert not (run_path / "kvstore").is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["summary.json", "checkpoints", "config.yaml"])
def test_a_folder_with_someone_elses_files_in_our_places_is_refused(tmp_path, name, overwrite):
    (tmp_path / name).mkdir() if name == "checkpoints" else (tmp_path / name).write_text("theirs")
    refusal(tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_with_other_files_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDir.open(tmp_path, overwrite=False).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_left_results_but_no_summary_is_refused_as_unfinished(tmp_path):
    with RunDir.open(tmp_path, overwrite=False) as run_dir:
        run_dir.metrics.write_text('{"rollout/step": 0}\n')
    assert "unfinished run (metrics.jsonl)" in refusal(tmp_path)


def test_a_run_that_failed_before_its_first_result_leaves_the_folder_free(tmp_path):
    with RunDir.open(tmp_path, overwrite=False) as run_dir:
        run_dir.write_config("seed: 0\n")
        run_dir.metrics.touch()
        run_dir.checkpoints.mkdir()
    with RunDir.open(tmp_path, overwrite=False) as run_dir:
        assert not run_dir.config.exists()


def test_resuming_keeps_everything(tmp_path):
    finished_run(tmp_path)
    with RunDir.open(tmp_path, overwrite=False, resume=True) as run_dir:
        assert (run_dir.checkpoints / "latest").read_text() == "step-1"
        assert run_dir.summary.exists()


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path / "file")


def test_a_folder_that_cannot_be_made_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file" / "run")


def test_a_folder_that_takes_no_bytes_is_refused_with_the_reason(tmp_path):
    with files_of_at_most(0):
        assert "cannot write in run_dir" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    assert "Permission denied" in refusal(tmp_path)


def test_a_folder_with_a_live_run_in_it_is_refused_by_process_until_it_ends(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for how in ({"overwrite": True}, {"resume": True}):
            assert f"process {holder.pid} on" in refusal(tmp_path, **how)
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    RunDir.open(tmp_path, overwrite=False).close()


def test_a_refused_folder_is_not_left_locked(tmp_path):
    finished_run(tmp_path)
    refusal(tmp_path)
    RunDir.open(tmp_path, overwrite=True).close()


def test_the_summary_is_replaced_whole_or_not_at_all(tmp_path):
    with RunDir.open(tmp_path, overwrite=False) as run_dir:
        run_dir.write_summary({"jct_s": 1.0})
        with files_of_at_most(100), pytest.raises(RunDirError, match="cannot write"):
            run_dir.write_summary({"jct_s": [0.5] * 1000})
        assert json.loads(run_dir.summary.read_text()) == {"jct_s": 1.0}
    assert not list(tmp_path.glob("*.tmp"))


def test_the_summary_is_json_even_where_a_figure_is_not_a_number(tmp_path):
    with RunDir.open(tmp_path, overwrite=False) as run_dir:
        run_dir.write_summary({"reward_mean": math.nan, "steps": [{"jct_s": math.inf}]})
        text = run_dir.summary.read_text()
    assert json.loads(text) == {"reward_mean": None, "steps": [{"jct_s": None}]}

"""`python -m kvstore`: one clear line for wrong input, quick answers, JSON where it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.kvstore.tools.small_store import complaint_of, fill, table_of

DEADLINE_S = 60.0
COMMANDS = ("stat", "verify", "gc")
CONDITIONS = {"gc": ["--keep-latest", "1"]}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvstore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_that_is_not_there_is_named(tmp_path, capsys, command):
    path = tmp_path / "nowhere"
    assert str(path) in complaint_of(capsys, command, path, *CONDITIONS.get(command, []))
    assert not path.exists()


@pytest.mark.parametrize("command", [*COMMANDS, "bench"])
def test_a_file_is_no_store(tmp_path, capsys, command):
    path = tmp_path / "file"
    path.write_text("x")
    assert str(path) in complaint_of(capsys, command, path, *CONDITIONS.get(command, []))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "stat|verify|gc|bench"),
        (["prune", "."], "prune"),
        (["stat"], "PATH"),
        (["stat", ".", "--jsn", "-"], "--jsn"),
        (["verify", ".", "--threads", "0"], "'0'"),
        (["verify", ".", "--threads", "many"], "'many'"),
        (["gc", ".", "--keep-latest", "-1"], "'-1'"),
        (["gc", ".", "--older-than", "yesterday"], "'yesterday'"),
        (["gc", ".", "--older-than", "nan"], "'nan'"),
        (["stat", ".", "--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
    ],
)
def test_a_wrong_line_is_answered_with_what_is_wrong_in_it(capsys, arguments, named):
    assert named in complaint_of(capsys, *arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_is_answered_for_by_a_process_of_its_own(tmp_path, command):
    fill(tmp_path, range(3))
    done = run(command, str(tmp_path), *CONDITIONS.get(command, []), "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["path"] == str(tmp_path)


def test_bad_blocks_end_with_exit_code_one(tmp_path):
    location = fill(tmp_path, range(3))[0]
    with (tmp_path / location.segment).open("r+b") as file:
        file.seek(location.offset)
        file.write(b"\xff" * 10)
    assert run("verify", str(tmp_path)).returncode == 1


def test_nothing_heavy_is_imported_to_answer(tmp_path):
    script = (
        "import sys; from kvstore.__main__ import main; main(['stat', sys.argv[1]]); "
        "print(sorted({'torch', 'ray', 'mooncake'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_reader_that_hangs_up_early_is_no_error(tmp_path):
    command = f"{sys.executable} -m kvstore stat {tmp_path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_table_and_the_json_file_come_from_one_run(tmp_path, capsys):
    fill(tmp_path, range(3))
    out = tmp_path / "stat.json"
    assert "3 blocks" in table_of(capsys, "stat", tmp_path, "--json", out)
    assert json.loads(out.read_text())["blocks"] == 3


def test_help_lists_the_commands():
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in (*COMMANDS, "bench"))

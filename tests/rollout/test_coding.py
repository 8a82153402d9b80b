"""The coding task: its repositories fail, can be repaired with its tools, and pass by no other means."""

from __future__ import annotations

import asyncio
import json
import runpy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from rollout.coding import RepairTask
from rollout.compose import load_config
from rollout.environments import needs_sandbox
from rollout.preflight import check
from rollout.sandbox.sandbox import SandboxUnavailable
from rollout.tasks import Task, TaskFileError, bundled_tasks_path, load_tasks
from rollout.tools.runner import ToolRunner
from rollout.workbench import Workbench
from tests.rollout.sandbox.limits import SMALL, skip_without_sandbox

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = load_tasks(bundled_tasks_path("coding"))
LEAVE = "import os\nprint('OK')\nos._exit(0)\n"


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def repair(task: Task) -> str:
    """The call that undoes the task's bug."""
    bug, text = task.details["bug"], task.details["files"][task.details["bug"]["path"]]
    lines, number = text.split("\n"), bug["line"] - 1
    column = bug["start"] - sum(len(line) + 1 for line in lines[:number])
    broken = lines[number]
    right = broken[:column] + bug["was"] + broken[column + len(bug["now"]) :]
    around = "\n".join(lines[max(0, number - 1) : number + 2])
    return call("edit", path=bug["path"], old=around, new=around.replace(broken, right))


def play(task: Task, *calls: str) -> tuple[list[str], float]:
    """What the model is told of its calls, and what its answer then earns."""
    skip_without_sandbox()

    async def act() -> tuple[list[str], float]:
        environment = RepairTask(task, Workbench(ToolRunner(load_config().tools), SMALL))
        try:
            assert (await environment.reset()).messages[-1].content == task.prompt
            told = []
            for each in calls:
                reply = (await environment.step(each)).reply
                assert isinstance(reply, tuple)
                told.append(reply[0].content)
            last = await environment.step("It is done.")
            assert last.done
            return told, last.reward
        finally:
            await environment.close()

    return asyncio.run(act())


def test_there_are_at_least_twenty_different_bugs_in_several_repositories() -> None:
    bugs = {json.dumps(task.details["bug"]) + task.task_id.split("-")[0] for task in TASKS}
    assert len(TASKS) == len(bugs) >= 20
    assert len({task.task_id.split("-")[0] for task in TASKS}) == 5
    assert all(task.environment == "coding" and needs_sandbox(task) for task in TASKS)


@pytest.mark.parametrize("task", TASKS[:5], ids=lambda task: task.task_id)
def test_the_tests_fail_until_the_bug_is_repaired(task: Task) -> None:
    assert play(task)[1] == 0.0
    told, reward = play(task, call("bash", command="python -m unittest"), repair(task))
    assert "FAILED" in told[0]
    assert told[1] == f"{task.details['bug']['path']} is changed"
    assert reward == 1.0


@pytest.mark.parametrize(
    "command",
    [
        "rm -r tests; mkdir tests; touch tests/__init__.py",
        "for f in tests/test_*.py; do echo > $f; done",
        "rm -r tests; ln -s /tmp tests",
        "echo 'class TestCase: pass' > unittest.py; cp unittest.py json.py",
        f"echo {json.dumps(LEAVE)} > ledger/__init__.py; printf {LEAVE!r} > ledger/accounts.py",
        "rm -r ledger",
        "chmod 0 tests ledger",
        "head -c 200M /dev/zero > full",
        "setsid bash -c 'while :; do rm -rf tests/test_*; done' &",
    ],
)
def test_other_ways_to_pass_earn_nothing(command: str) -> None:
    task = next(task for task in TASKS if task.task_id.startswith("ledger"))
    assert play(task, call("bash", command=command))[1] == 0.0


def test_the_bundled_tasks_are_what_the_script_makes() -> None:
    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_coding_tasks"))
    made = script["make_lines"](script["DEFAULT_REPOSITORIES"], 0, 30)
    lines = bundled_tasks_path("coding").read_text().splitlines()
    assert list(islice(made, 3)) == lines[:3]


def test_the_script_puts_in_one_bug_at_a_time() -> None:
    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_coding_tasks"))
    text = "def f(a, b):\n    return a + 1 if a <= b and not b else -2\n"
    made = sorted(bug.apply(text).split("return ")[1].strip() for bug in script["bugs_of"]("f.py", text))
    assert made == [
        "a + 1 if a < b and not b else -2",
        "a + 1 if a <= b and not b else -3",
        "a + 1 if a <= b or not b else -2",
        "a + 2 if a <= b and not b else -2",
        "a - 1 if a <= b and not b else -2",
    ]


@pytest.mark.parametrize(
    "details", [{}, {"files": {}}, {"files": {"a.py": 3}, "tests": {}}, {"files": {"a": "b"}}]
)
def test_a_line_without_files_or_tests_is_refused_by_name(details: dict[str, object]) -> None:
    with pytest.raises(TaskFileError, match="of task x must be an object of paths and texts"):
        needs_sandbox(Task("x", "?", "", "coding", details))


def test_a_job_of_code_is_refused_before_it_starts_where_nothing_isolates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load_config(["task=coding", "sampling.max_tokens=64"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"^[^\n]*apt install bubblewrap[^\n]*sandbox=unsafe"):
        check(config)
    assert load_config(["task=coding", "sandbox=unsafe"]).sandbox == replace(config.sandbox, kind="unsafe")

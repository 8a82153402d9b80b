"""Repairing a small repository: one bug, tests that fail because of it, and a shell.

A task's line has `files` and `tests`, each a path and a text, put into a fresh workspace. The model works
there with `bash` and `edit`, and ends with a reply without a call. Reward 1 if the tests pass then. The
tests are written anew before they are run, so changing them earns nothing, and they are run by their own
process, which has to say at its end a word that it is told at its start: code that leaves early earns
nothing either. Code that goes looking for that word in the process it shares with its judge can still find
it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence

from rollout.environment import ToolError
from rollout.sandbox.sandbox import Ran
from rollout.tasks import Task, TaskFileError
from rollout.tool_task import ToolTask
from rollout.tools.code import CodeTools, told
from rollout.workbench import Workbench

_WRITE = """
import json, os, sys
for path, text in json.load(sys.stdin).items():
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
"""
_JUDGE = """
import importlib, json, os, shutil, sys, unittest
request = json.load(sys.stdin)
for folder in {path.split("/")[0] for path in request["tests"]}:
    if os.path.islink(folder) or os.path.isfile(folder):
        os.remove(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
for path, text in request["tests"].items():
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
sys.path.append(os.getcwd())  # last, so that nothing there stands in for the standard library
names = [path[:-3].replace("/", ".") for path in request["tests"] if path.endswith(".py")]
suite = unittest.defaultTestLoader.loadTestsFromNames(names)
result = unittest.TextTestRunner(verbosity=0).run(suite)
if result.wasSuccessful() and result.testsRun > 0 and not result.skipped:
    print(request["word"])
"""


class RepairTask(ToolTask):
    """One such repository."""

    system = (
        "You are a programmer. Your workspace is the current folder. Look around with bash, run the tests "
        "with `python -m unittest`, repair the code, not the tests, and answer without a tool call when you "
        "are done."
    )

    def __init__(self, task: Task, workbench: Workbench) -> None:
        super().__init__(task, workbench)
        self._files, self._tests = _texts(task, "files"), _texts(task, "tests")

    @staticmethod
    def needs_sandbox(task: Task) -> bool:
        return bool(_texts(task, "files") and _texts(task, "tests"))

    def tools(self) -> Sequence[Callable[..., object]]:
        tools = CodeTools(self.sandbox)
        return [tools.bash, tools.edit]

    async def start(self) -> str:
        ran = await self._python(_WRITE, self._files | self._tests)
        if ran.exit_code != 0:
            raise ToolError(f"the files of task {self.task.task_id} cannot be written: {told(ran)}")
        return self.task.prompt

    async def reward(self, answer: str) -> float:
        word = secrets.token_hex(16)
        ran = await self._python(_JUDGE, {"tests": self._tests, "word": word})
        return float(ran.exit_code == 0 and ran.output.rstrip().endswith(word))

    async def _python(self, program: str, given: object) -> Ran:
        return await self.sandbox.run(["python3", "-I", "-S", "-c", program], json.dumps(given))


def _texts(task: Task, key: str) -> dict[str, str]:
    """Paths and texts of the task's line; TaskFileError if they are not."""
    found = task.details.get(key)
    if not isinstance(found, dict) or not found or not all(isinstance(text, str) for text in found.values()):
        raise TaskFileError(f'"{key}" of task {task.task_id} must be an object of paths and texts, not empty')
    return found

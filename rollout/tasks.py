"""The task set: what each agent is asked, and the answer its reward is judged by.

A task file is JSONL. Each line is an object with `prompt` and `answer` (a string or a number), and
optionally `id` and `environment`; other keys are the environment's. This file checks such files and deals
tasks out to steps; how a task is played is the environment's affair.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rollout.errors import UserError

ENVIRONMENTS = {
    "word_problems": "rollout.word_problems:WordProblem",
    "chain_arithmetic": "rollout.chain_arithmetic:ChainArithmetic",
    "tool_use": "rollout.tool_use:ToolUse",
    "coding": "rollout.coding:RepairTask",
    "one_reply": "rollout.one_reply:OneReply",
    "skyrl_gym": "rollout.skyrl_gym_environment:SkyRLGymTask",
}
"""The bundled environments: name and class. Other names are `module:Class`."""
_BUNDLED = {"word_problems": "arithmetic.jsonl", "coding": "coding.jsonl"}
_NO_ANSWER = ("coding", "one_reply", "skyrl_gym")
"""Environments that judge by something else: their lines need no answer, nor do those of `module:Class`."""


_OWN_KEYS = ("id", "prompt", "answer", "environment")


class TaskFileError(UserError, ValueError):
    """A task file that cannot be used; one line says where it is wrong. Nothing was started."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem; a group of agents attempts it."""

    task_id: str
    prompt: str
    answer: str
    environment: str = "word_problems"
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else the task's line says, for its environment."""


def bundled_tasks_path(environment: str = "word_problems") -> Path:
    """The tasks of an environment that ship with the package; TaskFileError if none do."""
    if environment not in _BUNDLED:
        raise TaskFileError(
            f"no tasks for task.environment={environment} ship with the package; set task.path"
        )
    return Path(str(resources.files("rollout") / "data" / _BUNDLED[environment]))


def load_tasks(path: Path, environment: str = "word_problems") -> list[Task]:
    """Read a task file; raise TaskFileError at its first bad line.

    `environment` plays the lines that do not name one.
    """
    tasks: list[Task] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        task = _parse(line, number, f"task file {path} line {number}", environment)
        if task.task_id in line_of:
            raise TaskFileError(
                f'task file {path} line {number}: "id" {task.task_id!r} is taken by line '
                f"{line_of[task.task_id]}; ids must differ"
            )
        line_of[task.task_id] = number
        tasks.append(task)
    if not tasks:
        raise TaskFileError(
            f'task file {path} is empty; give one JSON object with "prompt" and "answer" a line'
        )
    return tasks


def step_tasks(tasks: Sequence[Task], step: int, prompts_per_step: int, seed: int) -> list[Task]:
    """The tasks of `step`: each epoch walks through all of them in its own seeded order.

    A step that straddles two epochs, or is larger than the set, may hold a task twice.
    """
    first = step * prompts_per_step
    chosen = []
    for epoch in range(first // len(tasks), (first + prompts_per_step - 1) // len(tasks) + 1):
        order = list(tasks)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        start = epoch * len(tasks)
        chosen += order[max(first - start, 0) : first + prompts_per_step - start]
    return chosen


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TaskFileError(f"task file {path} does not exist; set task.path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"task file {path} cannot be read: {error}") from error


def _parse(line: str, number: int, where: str, environment: str) -> Task:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskFileError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise TaskFileError(f"{where}: must be a JSON object, got {line.strip()[:40]!r}")
    return task_of(record, where, f"line-{number}", environment)


def task_of(
    record: Mapping[str, Any], where: str, default_id: str, environment: str = "word_problems"
) -> Task:
    """The task that a line of a task file describes, however it came here.

    `where` begins the message of the TaskFileError that a bad one raises; `environment` plays it if it names
    none.
    """
    environment = _text(record, "environment", where, default=environment)
    if environment not in ENVIRONMENTS and ":" not in environment:
        known = ", ".join(ENVIRONMENTS)
        raise TaskFileError(
            f'{where}: "environment" {environment!r} is unknown; known ones: {known}, or module:Class'
        )
    needs_answer = environment in ENVIRONMENTS and environment not in _NO_ANSWER
    return Task(
        task_id=_text(record, "id", where, default=default_id, number=True),
        prompt=_text(record, "prompt", where),
        answer=_text(record, "answer", where, default=None if needs_answer else "", number=True),
        environment=environment,
        details={key: value for key, value in record.items() if key not in _OWN_KEYS},
    )


def _text(
    record: Mapping[str, Any],
    key: str,
    where: str,
    *,
    default: str | None = None,
    number: bool = False,
) -> str:
    """A text of the record; `number` lets an int or a float stand for its text."""
    if key not in record:
        if default is None:
            raise TaskFileError(f'{where}: "{key}" is missing')
        return default
    value = record[key]
    if number and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        wanted = "a string or a number" if number else "a string"
        raise TaskFileError(f'{where}: "{key}" must be {wanted}, got {json.dumps(value)[:40]}')
    if not value.strip():
        raise TaskFileError(f'{where}: "{key}" is empty')
    return value

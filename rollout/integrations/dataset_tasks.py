"""The tasks behind a trainer's prompts: a row of its dataset is a line of a task file, column by column.

A trainer hands on prompts alone. What else a task needs (its answer, its environment, what the environment
reads) is looked up in the dataset that the prompt came from. Knows no trainer: a dataset is anything with a
length, columns and rows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from rollout.tasks import ENVIRONMENTS, Task, TaskFileError, task_of

OPENS_ITSELF = frozenset(ENVIRONMENTS) - {"one_reply"}
"""Environments that know a prompt, and no conversation that has begun."""


class Dataset(Protocol):
    """What is used of a datasets.Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any:
        """A row by number, a column by name."""


class DatasetTasks:
    """Of some datasets; `environment` plays rows that name none."""

    def __init__(self, datasets: Iterable[Dataset], environment: str) -> None:
        self._datasets = list(datasets)
        self._environment = environment
        self._places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """Dataset and row of every prompt."""
        for which, dataset in enumerate(self._datasets):
            if not hasattr(dataset, "__len__"):
                raise TaskFileError(
                    f"a prompt's row cannot be looked up in a streamed {type(dataset).__name__}; "
                    "load the dataset without streaming"
                )
            for row, prompt in enumerate(dataset["prompt"]):
                self._places[_key(prompt)].append((which, row))

    def task(self, prompt: Any) -> Task:
        """The prompt's task; raises TaskFileError if its row is missing, bad, or not the only one."""
        places = self._places.get(_key(prompt))
        if not places:
            raise TaskFileError(
                f"prompt {_short(prompt)} is in none of the trainer's datasets; give it the dataset as "
                "train_dataset or eval_dataset"
            )
        (which, number), *others = places
        record = self._record(which, number)
        for place in others:
            if self._record(*place) != record:
                raise TaskFileError(
                    f"rows {number} and {place[1]} of the dataset have one prompt, {_short(prompt)}, and "
                    "differ elsewhere; a trainer tells them apart by their prompts only"
                )
        task = task_of(record, f"row {number} of the dataset", f"row-{number}", self._environment)
        if "messages" in record and task.environment in OPENS_ITSELF:
            raise TaskFileError(
                f"row {number} of the dataset: the environment {task.environment} opens the conversation "
                f'itself; give its "prompt" as a text, or environment=one_reply, got {_short(prompt)}'
            )
        return task

    def _record(self, which: int, number: int) -> dict[str, Any]:
        """The row as the line of a task file: None stands where another row has a key that this one lacks."""
        row: Mapping[str, Any] = self._datasets[which][number]
        record = {key: value for key, value in row.items() if value is not None}
        if isinstance(record["prompt"], list):
            conversation = record["prompt"]
            record["prompt"] = conversation[-1].get("content")
            if [message.get("role") for message in conversation] != ["user"]:
                record["messages"] = conversation
        return record


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def _short(prompt: Any) -> str:
    text = _key(prompt)
    return repr(text if len(text) <= 60 else text[:57] + "...")

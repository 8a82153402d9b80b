"""A trainer's prompt leads to its row, and the row is a line of a task file."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.integrations.dataset_tasks import DatasetTasks
from rollout.tasks import Task, TaskFileError


class Rows:
    """A data set in memory, of the little that is used of one."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self._rows] if isinstance(key, str) else self._rows[key]


def tasks(*rows: dict[str, Any]) -> DatasetTasks:
    return DatasetTasks([Rows(*rows)], environment="word_problems")


def test_a_row_is_a_line_of_a_task_file_with_none_where_it_has_no_key() -> None:
    found = tasks(
        {"prompt": "1+1?", "answer": "2", "id": None, "environment": None, "tools": None},
        {"prompt": "fix", "answer": None, "id": "b", "environment": "my:Env", "tools": ["bash"]},
    )
    assert found.task("1+1?") == Task("row-0", "1+1?", "2", "word_problems")
    assert found.task("fix") == Task("b", "fix", "", "my:Env", {"tools": ["bash"]})


def test_a_prompt_may_be_one_message_of_the_users() -> None:
    prompt = [{"role": "user", "content": "1+1?"}]
    assert tasks({"prompt": prompt, "answer": "2"}).task(prompt).prompt == "1+1?"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "x", "answer": "2"}], "prompt '1' is in none of the trainer's datasets"),
        (
            [{"prompt": "1", "answer": "2"}, {"prompt": "1", "answer": "3"}],
            "rows 0 and 1 of the dataset have one prompt, '1', and differ elsewhere",
        ),
        ([{"prompt": "1"}], 'row 0 of the dataset: "answer" is missing'),
        ([{"prompt": "1", "environment": "chess"}], "\"environment\" 'chess' is unknown"),
    ],
)
def test_a_prompt_without_one_good_row_is_told_in_one_line(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(TaskFileError, match=message) as raised:
        tasks(*rows).task("1")
    assert "\n" not in str(raised.value)


def test_a_conversation_that_has_begun_is_handed_to_an_environment_that_takes_one() -> None:
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    found = tasks({"prompt": prompt, "environment": "one_reply"}).task(prompt)
    assert found == Task("row-0", "u", "", "one_reply", {"messages": prompt})
    with pytest.raises(TaskFileError, match="word_problems opens the conversation itself"):
        tasks({"prompt": prompt, "answer": "2"}).task(prompt)


def test_equal_rows_of_one_prompt_are_one_task() -> None:
    row = {"prompt": "1+1?", "answer": "2"}
    assert tasks(row, dict(row)).task("1+1?").task_id == "row-0"


def test_a_streamed_dataset_is_refused() -> None:
    with pytest.raises(TaskFileError, match="load the dataset without streaming"):
        DatasetTasks([iter([])], environment="word_problems")  # type: ignore[list-item]

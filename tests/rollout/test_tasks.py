"""Task files: what is read, what is refused and in which words, and how steps are dealt out."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.errors import UserError
from rollout.tasks import (
    Task,
    TaskFileError,
    bundled_tasks_path,
    load_tasks,
    step_tasks,
)

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = [Task(str(number), f"problem {number}", str(number)) for number in range(10)]

WriteTasks = Callable[[str], Path]


@pytest.fixture
def write_tasks(tmp_path: Path) -> WriteTasks:
    def write(text: str) -> Path:
        path = tmp_path / "tasks.jsonl"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_answers_may_be_strings_or_numbers_and_ids_default_to_the_line(write_tasks: WriteTasks) -> None:
    path = write_tasks(
        '{"prompt": "a?", "answer": 7}\n\n'
        '{"prompt": "b?", "answer": "x y", "id": "b", "environment": "chain_arithmetic"}\n'
        '{"prompt": "c?", "answer": 0.5, "id": 12, "source": "elsewhere"}'
    )
    assert load_tasks(path) == [
        Task("line-1", "a?", "7"),
        Task("b", "b?", "x y", "chain_arithmetic"),
        Task("12", "c?", "0.5", details={"source": "elsewhere"}),
    ]


def test_a_line_separator_inside_a_text_does_not_end_the_line(write_tasks: WriteTasks) -> None:
    path = write_tasks('{"prompt": "one\u2028two\x85three", "answer": 7}\n')
    assert load_tasks(path)[0].prompt == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ('{"prompt": "a?", "answer": 7}\n{"prompt"', "line 2: not JSON"),
        ('["a?", 7]', "line 1: must be a JSON object"),
        ('{"answer": 7}', 'line 1: "prompt" is missing'),
        ('{"prompt": "a?"}', 'line 1: "answer" is missing'),
        ('{"prompt": " ", "answer": 7}', 'line 1: "prompt" is empty'),
        ('{"prompt": 3, "answer": 7}', 'line 1: "prompt" must be a string, got 3'),
        ('{"prompt": "a?", "answer": true}', '"answer" must be a string or a number, got true'),
        ('{"prompt": "a?", "answer": [7]}', '"answer" must be a string or a number, got [7]'),
        ('{"prompt": "a?", "answer": 7, "id": null}', '"id" must be a string or a number, got null'),
        (
            '{"prompt": "a?", "answer": 7, "environment": "chess"}',
            "'chess' is unknown; known ones: word_problems, chain_arithmetic",
        ),
        (
            '{"prompt": "a?", "answer": 7, "id": "x"}\n{"prompt": "b?", "answer": 8, "id": "x"}',
            "line 2: \"id\" 'x' is taken by line 1",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_says_where(
    write_tasks: WriteTasks, text: str, complaint: str
) -> None:
    path = write_tasks(text)
    with pytest.raises(TaskFileError) as caught:
        load_tasks(path)
    message = str(caught.value)
    assert complaint in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match=r"nowhere\.jsonl does not exist"):
        load_tasks(tmp_path / "nowhere.jsonl")
    with pytest.raises(TaskFileError, match="cannot be read"):
        load_tasks(tmp_path)
    assert issubclass(TaskFileError, UserError)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9", "answer": 1}\n')
    with pytest.raises(TaskFileError, match="cannot be read"):
        load_tasks(path)


def test_an_epoch_deals_every_task_once_in_an_order_of_its_own() -> None:
    steps = [step_tasks(TASKS, step, 5, seed=0) for step in range(4)]
    first, second = steps[0] + steps[1], steps[2] + steps[3]
    assert sorted(first, key=lambda task: task.task_id) == TASKS
    assert Counter(second) == Counter(first)
    assert second != first != TASKS


def test_steps_that_do_not_divide_an_epoch_walk_on_without_loss() -> None:
    walked = [task for step in range(10) for task in step_tasks(TASKS, step, 3, seed=1)]
    assert len(walked) == 30
    assert set(Counter(walked).values()) == {3}
    assert walked[:10] == step_tasks(TASKS, 0, 10, seed=1)


def test_a_step_larger_than_the_set_takes_it_again() -> None:
    assert set(Counter(step_tasks(TASKS, 0, 20, seed=0)).values()) == {2}


def test_the_same_seed_deals_the_same_tasks_and_another_seed_others() -> None:
    assert step_tasks(TASKS, 3, 4, seed=7) == step_tasks(TASKS, 3, 4, seed=7)
    assert step_tasks(TASKS, 3, 4, seed=7) != step_tasks(TASKS, 3, 4, seed=8)


def test_lines_without_an_environment_are_played_as_the_caller_says(write_tasks: WriteTasks) -> None:
    path = write_tasks('{"prompt": "Q1+2?", "answer": 3}\n{"prompt": "?", "environment": "my.tasks:Mine"}\n')
    first, own = load_tasks(path, "chain_arithmetic")
    assert first.environment == "chain_arithmetic"
    assert (own.environment, own.answer) == ("my.tasks:Mine", "")


def test_the_bundled_problems_load_and_have_whole_answers() -> None:
    tasks = load_tasks(bundled_tasks_path())
    assert len(tasks) == 240
    assert len({task.prompt for task in tasks}) == 240
    assert all(int(task.answer) > 0 for task in tasks)
    assert len({task.task_id.rpartition("-")[0] for task in tasks}) >= 8


def test_the_script_makes_the_bundled_file_again_byte_for_byte() -> None:
    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_arithmetic_tasks"))
    made = "".join(line + "\n" for line in script["make_lines"](0, 240))
    assert made.encode() == bundled_tasks_path().read_bytes()
    assert json.loads(script["make_lines"](1, 1)[0]) != json.loads(made.partition("\n")[0])

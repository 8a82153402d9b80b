"""What docs/tasks.md shows runs as it stands there."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from rollout.compose import load_config
from rollout.environment import Message, Step
from rollout.environments import make_environment
from rollout.tasks import ENVIRONMENTS, load_tasks
from rollout.tools.runner import ToolRunner
from rollout.workbench import Workbench
from tests.rollout.sandbox.limits import UNSAFE

DOC = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


def test_the_example_is_played_from_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    (line,) = re.findall(r"`(\{[^`]*geography:Capitals[^`]*\})`", DOC)
    (tmp_path / "geography.py").write_text(code)
    (tmp_path / "tasks.jsonl").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path))
    (task,) = load_tasks(tmp_path / "tasks.jsonl")
    workbench = Workbench(ToolRunner(load_config().tools), UNSAFE)

    async def play() -> list[Step]:
        environment = make_environment(task, workbench)
        call = '<tool_call>{"name": "look_up", "arguments": {"country": "Peru"}}</tool_call>'
        await environment.reset()
        return [await environment.step(text) for text in (call, "Lima.")]

    called, answered = asyncio.run(play())
    assert called.reply == (Message("tool", "Lima"),)
    assert answered.reward == 1.0
    sys.modules.pop("geography")


def test_every_bundled_environment_is_described() -> None:
    for name in ENVIRONMENTS:
        assert f"| `{name}`" in DOC

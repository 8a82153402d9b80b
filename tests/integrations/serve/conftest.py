"""One backend with an endpoint for all tests here: real engines, and a tiny model that was taught to call a tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import rollout
from rollout.backend import RolloutBackend
from rollout.environment import Message, ToolCall, ToolSchema
from rollout.types import Trajectory
from tests.integrations.serve.taught_model import Lesson, teach

QUESTION = "What is six times seven?"
CALCULATOR: ToolSchema = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works a product out.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
CALL = ToolCall("calculator", {"a": 6, "b": 7})
ANSWER = "It is 42."
LESSONS = (
    Lesson(
        opening=(Message("user", QUESTION),),
        tools=(CALCULATOR,),
        turns=('<tool_call>\n{"name": "calculator", "arguments": {"a": 6, "b": 7}}\n</tool_call>', ANSWER),
        replies=((Message("tool", "42"),),),
    ),
)


@pytest.fixture(scope="session")
def taught_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a template that has tools, taught LESSONS by heart."""
    return teach(tiny_model_dir, tmp_path_factory.mktemp("taught"), LESSONS)


class Served:
    """A backend, its endpoint, and the trajectories that came back from it."""

    def __init__(self, backend: RolloutBackend) -> None:
        self.backend = backend
        self.ended: list[Trajectory] = []


@pytest.fixture(scope="session")
def served(taught_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    config = rollout.load_config(
        [
            "experiment=smoke",
            "job=serve",
            f"model.path={taught_model_dir}",
            f"run_dir={tmp_path_factory.mktemp('run')}",
            "ray.agent_workers=1",
            "sampling.max_tokens=96",
            "task.max_context_tokens=1536",
            "kvstore.block_tokens=16",
            "engines.start_deadline_s=200",
            "serve.port=0",
            "serve.model_name=taught",
            "serve.max_requests=8",
            "serve.max_body_bytes=100000",
            "serve.request_timeout_s=60",
        ]
    )
    with RolloutBackend(config) as backend:
        served = Served(backend)
        with backend.serve(on_ended=served.ended.append) as served.endpoint:
            yield served

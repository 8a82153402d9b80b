"""One backend with an endpoint for all tests here: real engines, and a tiny model taught to call a tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rollout
from rollout.backend import RolloutBackend
from rollout.environment import Message
from rollout.types import Trajectory
from tests.integrations.serve.known import ANSWER, CALL, COUNTING, MULTIPLY, QUESTION
from tests.integrations.serve.taught_model import Lesson, teach

SERVE = ("serve.port=0", "serve.model_name=taught", "serve.max_body_bytes=100000")
OVERRIDES = (
    "experiment=smoke",
    "job=serve",
    "ray.agent_workers=1",
    "sampling.max_tokens=96",
    "task.max_context_tokens=1536",
    "engines.start_deadline_s=600",
    *SERVE,
)


LESSONS = (
    Lesson((Message("user", QUESTION),), (MULTIPLY,), (CALL, ANSWER), "42"),
    Lesson((Message("user", "Count."),), (), (COUNTING,)),
)


@pytest.fixture(scope="session")
def taught_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a template that has tools, taught its lessons by heart."""
    return teach(tiny_model_dir, tmp_path_factory.mktemp("taught"), LESSONS)


class Served:
    """A backend, its endpoint, and the trajectories that came back from it."""

    endpoint: Any

    def __init__(self, backend: RolloutBackend, model_dir: Path) -> None:
        self.backend = backend
        self.model_dir = model_dir
        self.ended: list[Trajectory] = []


@pytest.fixture(scope="session")
def served(taught_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run_dir = tmp_path_factory.mktemp("run")
    config = rollout.load_config([*OVERRIDES, f"model.path={taught_model_dir}", f"run_dir={run_dir}"])
    with RolloutBackend(config) as backend:
        served = Served(backend, taught_model_dir)
        with backend.serve(on_ended=served.ended.append) as served.endpoint:
            yield served

"""Rollouts of tool-using agents over disaggregated engines, as a backend for RL training.

The public names are imported when they are first used, so `import rollout` loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.types import SamplingParams
    from rollout.backend import RolloutBackend
    from rollout.compose import load_config
    from rollout.config import RunConfig
    from rollout.tasks import Task
    from rollout.types import Outcome, Segment, StopReason, Trajectory, Turn

__version__ = "0.1.0"

__all__ = [
    "Outcome",
    "RolloutBackend",
    "RunConfig",
    "SamplingParams",
    "Segment",
    "StopReason",
    "Task",
    "Trajectory",
    "Turn",
    "__version__",
    "load_config",
]

_MODULE_OF = {
    "Outcome": "rollout.types",
    "RolloutBackend": "rollout.backend",
    "RunConfig": "rollout.config",
    "SamplingParams": "engines.types",
    "Segment": "rollout.types",
    "StopReason": "rollout.types",
    "Task": "rollout.tasks",
    "Trajectory": "rollout.types",
    "Turn": "rollout.types",
    "load_config": "rollout.compose",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rollout' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

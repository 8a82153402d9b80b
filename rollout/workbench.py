"""What an agent worker gives its environments: the tool runner they share, and the sandbox's limits."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.sandbox.config import SandboxConfig
from rollout.tools.runner import ToolRunner


@dataclass(frozen=True, slots=True)
class Workbench:
    """Of one agent worker."""

    runner: ToolRunner
    sandbox: SandboxConfig

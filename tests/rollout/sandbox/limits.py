"""Small limits, so that a test that goes to them is quick."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rollout.sandbox.config import SandboxConfig
from rollout.sandbox.sandbox import SandboxUnavailable, check_sandbox

SMALL = SandboxConfig(
    kind="bubblewrap",
    call_s=20.0,
    cpu_s=20,
    memory_bytes=256 << 20,
    processes=24,
    file_bytes=8 << 20,
    workspace_bytes=16 << 20,
    files=200,
    output_bytes=2000,
)
SOON = replace(SMALL, call_s=0.5)
UNSAFE = replace(SMALL, kind="unsafe")


def skip_without_sandbox() -> None:
    """Skip the test, saying why, on a machine that cannot isolate."""
    try:
        check_sandbox(SMALL)
    except SandboxUnavailable as error:
        pytest.skip(str(error))

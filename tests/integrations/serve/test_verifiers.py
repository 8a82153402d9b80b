"""The agent loop of the released verifiers package, recorded as a trajectory without knowing of it."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed (pip install 'dualpath-rollout[serve]')")
pytest.importorskip(
    "verifiers", reason="verifiers is not installed (pip install 'dualpath-rollout[serve-test]')"
)

import asyncio
import sys
import uuid
from pathlib import Path

import verifiers.v1 as vf
from verifiers.v1.harnesses.null import NullHarnessConfig
from verifiers.v1.runtimes import SubprocessConfig, SubprocessRuntime

from rollout.types import Outcome
from tests.integrations.serve.conftest import Served
from tests.integrations.serve.known import ANSWER
from tests.integrations.serve.product_taskset import ProductTaskset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]


class ThisPython(SubprocessRuntime):
    """Runs the agent's program with this interpreter, which has all it needs; uv would make one for it."""

    async def prepare_uv_script(
        self, script: str | bytes, env: dict[str, str] | None = None, *, activate: bool = True
    ) -> list[str]:
        name = f"{uuid.uuid4().hex}.py"
        await self.write(name, script if isinstance(script, bytes) else script.encode())
        assert self.workdir is not None
        return [sys.executable, str(self.workdir / name)]


async def run_agent(base_url: str) -> vf.Trace:
    (task,) = ProductTaskset(vf.TasksetConfig(id="product"))
    agent = vf.Agent(
        vf.AgentConfig(
            harness=NullHarnessConfig(id="null"),
            runtime=SubprocessConfig(),
            model="taught",
            client=vf.EvalClientConfig(base_url=base_url, api_key_var="NO_SUCH_VARIABLE"),
            sampling={"temperature": 0.0, "max_tokens": 96},
            max_turns=4,
        )
    )
    runtime = ThisPython(SubprocessConfig())
    await runtime.start()
    try:
        return await agent.run(task, runtime=runtime)
    finally:
        await runtime.stop()


def test_an_agent_of_another_package_becomes_a_trajectory(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the tool's own process
    monkeypatch.setenv("HOME", str(tmp_path))
    base_url = served.endpoint.open_session(
        "verifiers", task_id="product", group_id="product", sample_index=2
    )
    trace = asyncio.run(asyncio.wait_for(run_agent(base_url), 200))
    assert trace.ok, trace.errors
    assert trace.last_reply == ANSWER
    trajectory = served.endpoint.end_session("verifiers", reward=trace.reward)
    assert trajectory.outcome is Outcome.COMPLETED
    assert trajectory.reward == 1.0
    # The tool was really called between two turns of one segment.
    (segment,) = trajectory.segments
    segment.check()
    first, second = trajectory.turns
    assert first.tool_tokens > 0
    assert first.tool_s > 0
    assert second.prompt_tokens == first.prompt_tokens + first.output_tokens + first.tool_tokens
    assert second.hit_tokens > 0
    assert sum(segment.loss_mask) == first.output_tokens + second.output_tokens

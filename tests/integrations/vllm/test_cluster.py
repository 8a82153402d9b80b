"""Prefill and decode nodes whose engines run vLLM, in Ray actors: what they say, and who may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from rollout.async_backend import AsyncRolloutBackend
from rollout.compose import load_config
from rollout.records import read_trajectories
from rollout.replay import plan_replay
from rollout.types import Outcome, Trajectory
from tests.integrations.vllm.models import save_model
from tests.integrations.vllm.vllm_engine import vllm_engine

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

BLOCK_TOKENS, TURNS, APPEND, OUTPUT = 32, 8, 50, 10
START_S = 900
"""A vLLM takes 15 s of a processor to start, and a busy one gives it a tenth."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("gqa", tmp_path_factory.mktemp("models") / "gqa")


def write_trace(path: Path, agents: int) -> Path:
    rows = ["session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms"]
    for agent in range(agents):
        for turn in range(TURNS):
            rows.append(f"a{agent},{turn},{turn * (APPEND + OUTPUT)},{APPEND},{OUTPUT},0")
    path.write_text("\n".join(rows) + "\n")
    return path


def overrides(model: Path, folder: Path, *, agents: int) -> list[str]:
    return [
        "job=replay",
        "engines=vllm",
        f"model.path={model}",
        f"trace={write_trace(folder / 'trace.csv', agents)}",
        f"run_dir={folder / 'run'}",
        f"num_agents={agents}",
        f"kvstore.block_tokens={BLOCK_TOKENS}",
        f"kvstore.staging_bytes={64 << 20}",
        f"engines.prefill_hbm_bytes={32 << 20}",
        f"engines.decode_kv_bytes={32 << 20}",
        f"engines.start_deadline_s={START_S}",
        "sampling.temperature=0",
        "ray.agent_workers=1",
        "monitor=off",
    ]


def test_eight_turns_through_the_dual_path_say_what_vllm_says_alone(model, tmp_path):
    told = [*overrides(model, tmp_path, agents=2), "cluster=1p1d", "scheduler.read_plan=split"]
    done = subprocess.run(
        [sys.executable, "-m", "rollout", *told], capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["outcomes"]["completed"] == summary["num_trajectories"] == 2
    played = list(read_trajectories(tmp_path / "run" / "trajectories.parquet", 0))
    for trajectory in played:
        contexts = [turn * (APPEND + OUTPUT) for turn in range(TURNS)]
        # Of a turn's last token there is no KV.
        expected = [max(0, context - 1) // BLOCK_TOKENS * BLOCK_TOKENS for context in contexts]
        assert [turn.hit_tokens for turn in trajectory.turns] == expected
    assert_said_by_vllm(model, played)


def assert_said_by_vllm(model: Path, played: list[Trajectory]) -> None:
    """Each sampled token is the likeliest that vLLM alone knows, and as likely as was said."""
    asked = [{"prompt_token_ids": list(trajectory.segments[0].token_ids)} for trajectory in played]
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    with vllm_engine(model) as llm:
        outputs = llm.generate(asked, sampling, use_tqdm=False)
    for trajectory, output in zip(played, outputs, strict=True):
        segment = trajectory.segments[0]
        sampled = [place for place, is_own in enumerate(segment.loss_mask) if is_own]
        assert len(sampled) == TURNS * OUTPUT
        said = [output.prompt_logprobs[place][segment.token_ids[place]] for place in sampled]
        assert [each.rank for each in said] == [1] * len(said)
        assert [each.logprob for each in said] == pytest.approx(
            [segment.logprobs[place] for place in sampled], abs=1e-3
        )


async def play_with_fault(backend: AsyncRolloutBackend, tasks, fault: signal.Signals) -> list[Trajectory]:
    """The first decode engine is hit as soon as it runs a turn; it may go on once all is over."""
    engine_id, engine = next(iter(backend.cluster.decode_engines.items()))
    pid = await engine.alive()
    while True:
        if not (await engine.figures())["running"]:  # of what a fault before this one left
            break
        await asyncio.sleep(0.005)

    async def strike() -> None:
        while True:
            if (await engine.figures())["running"]:
                os.kill(pid, fault)
                return
            await asyncio.sleep(0.005)

    striking = asyncio.create_task(strike())
    try:
        async with asyncio.timeout(600):
            found = await backend.generate(tasks)
        assert striking.done(), f"{engine_id} ran nothing"
        return found
    finally:
        striking.cancel()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def faulty(model, tmp_path) -> Iterator[tuple[AsyncRolloutBackend, object]]:
    told = [*overrides(model, tmp_path, agents=4), "cluster=1p2d", "scheduler.heartbeat_deadline_s=5"]
    config = load_config(told)
    return AsyncRolloutBackend(config), plan_replay(config)


def test_a_stopped_and_a_killed_decode_engine_cost_no_turn(faulty):
    backend, plan = faulty

    async def run() -> None:
        async with backend:
            for fault in (signal.SIGSTOP, signal.SIGKILL):
                found = await play_with_fault(backend, plan.tasks, fault)
                assert [trajectory.outcome for trajectory in found] == [Outcome.COMPLETED] * 4
                assert any(turn.num_attempts > 1 for each in found for turn in each.turns), fault

    asyncio.run(run())

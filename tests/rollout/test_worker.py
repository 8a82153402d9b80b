"""An agent worker's own part: what it opens for its agents."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from engines.errors import EngineError
from engines.types import SamplingParams
from rollout.agent_run import Sample
from rollout.compose import load_config
from rollout.glance import Glance
from rollout.replay_task import ReplayTask
from rollout.traces.session import Piece, Round, Session
from rollout.worker import AgentWorker, WorkerSpec
from tests.rollout.test_agent import LIMITS, SAMPLE, ScriptedEngines
from tests.rollout.test_replay_agent import CountingEngines

CONFIG = load_config()


def worker_spec(parts: object, model_path: str | None = None, **changes: object) -> WorkerSpec:
    """Of a worker whose tools and sandbox are the default job's."""
    made = WorkerSpec(parts, model_path, SamplingParams(), LIMITS, CONFIG.tools, CONFIG.sandbox)  # type: ignore[arg-type]
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_turn_stops_at_every_end_token_of_the_models_generation_config(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    engines = ScriptedEngines(EngineError("out of order"))
    parts = SimpleNamespace(client=lambda name: engines)
    asyncio.run(AgentWorker(worker_spec(parts, str(folder))).run(SAMPLE))
    assert {7, 9} <= set(engines.samplings[0].stop_ids)


def replaying_worker(engines: CountingEngines, **changes: object) -> AgentWorker:
    parts = SimpleNamespace(client=lambda name: engines, layout=SimpleNamespace(block_tokens=4))
    return AgentWorker(worker_spec(parts, **changes))


def test_a_worker_says_what_its_agents_do_and_how_much_of_their_kv_was_lost() -> None:
    async def look() -> tuple[Glance, Glance]:
        worker = replaying_worker(CountingEngines(), tool_wait_scale=1.0)
        rounds = (Round((Piece("s", 0, 30),), 6), Round((Piece("s", 30, 10),), 3, tool_wait_s=60.0))
        session = Session("s", (*rounds, Round((Piece("s", 40, 5),), 1)))
        playing = asyncio.create_task(worker.run(Sample(ReplayTask("s", session), "0/s", 0)))
        async with asyncio.timeout(20):
            during = await worker.glance(5)
            while during.num_turns < 1 or during.oldest[0].phase != "tool":
                await asyncio.sleep(0)
                during = await worker.glance(5)
        await worker.abort("0/s/0")
        await playing
        return during, await worker.glance(5)

    during, after = asyncio.run(look())
    (agent,) = during.oldest
    assert (agent.trajectory_id, agent.phase, agent.num_turns) == ("0/s/0", "tool", during.num_turns)
    assert after.oldest == ()
    assert after.num_moves >= during.num_moves > 0
    # Round two had 36 of its tokens stored and none was a hit; one block may still have been on its way.
    assert (after.expected_hit_tokens, after.lost_hit_tokens) == (36, 32)


def test_a_worker_tells_its_finished_turns_only_if_somebody_comes_for_them() -> None:
    async def records(keeps_records: bool) -> int:
        worker = replaying_worker(CountingEngines(), keeps_records=keeps_records)
        session = Session("s", (Round((Piece("s", 0, 30),), 6), Round((Piece("s", 30, 10),), 3)))
        await worker.run(Sample(ReplayTask("s", session), "0/s", 0))
        return (await worker.records(0, 0.0))[0]

    assert asyncio.run(records(keeps_records=True)) == 3
    assert asyncio.run(records(keeps_records=False)) == 0

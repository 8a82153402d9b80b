"""An agent worker's own part: what it opens for its agents."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from engines.errors import EngineError
from engines.types import SamplingParams
from rollout.compose import load_config
from rollout.worker import AgentWorker, WorkerSpec
from tests.rollout.test_agent import LIMITS, SAMPLE, ScriptedEngines


def test_a_turn_stops_at_every_end_token_of_the_models_generation_config(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    engines = ScriptedEngines(EngineError("out of order"))
    parts = SimpleNamespace(client=lambda: engines)
    config = load_config()
    spec = WorkerSpec(
        parts,  # type: ignore[arg-type]
        str(folder),
        SamplingParams(),
        LIMITS,
        config.tools,
        config.sandbox,
    )
    asyncio.run(AgentWorker(spec).run(SAMPLE))
    assert {7, 9} <= set(engines.samplings[0].stop_ids)

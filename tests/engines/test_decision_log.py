"""What a scheduler decided is decided again from its log: the policy looks at nothing else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engines.config import ReadPlanName
from engines.decision_log import DecisionsDiffer, replay
from tests.engines.conversations import conversation
from tests.engines.local_cluster import cluster_spec
from tests.engines.scheduler_bench import open_bench
from tests.engines.test_scheduler_walk import Walk, add_prefill_node
from tests.engines.tiny_models import save_tiny_model


def log_of_walk(path: Path, plan: ReadPlanName, seed: int, **settings: object) -> list[bytes]:
    """A walk through a scheduler that writes down its decisions."""

    async def run() -> None:
        bench = await open_bench(60, 3, plan, decision_log=str(path), **settings)
        await add_prefill_node(bench)
        walk = Walk(bench, seed, dram_slots=3)
        for _ in range(70):
            await walk.step()
        await walk.end()
        await bench.scheduler.close()

    asyncio.run(run())
    return path.read_bytes().splitlines()


@pytest.mark.parametrize(
    ("plan", "settings"),
    [
        ("split", {"read_memory_s": 1.0}),
        ("dual", {"group_nodes": 1, "prefill_load_counts": "miss"}),
        ("basic", {"rendezvous": "independent", "hbm_need": "prompt"}),
        ("alternate", {"placement": "round_robin"}),
    ],
)
def test_a_walk_is_decided_again_as_it_was(
    plan: ReadPlanName, settings: dict[str, object], tmp_path: Path
) -> None:
    logs = [log_of_walk(tmp_path / f"{seed}.jsonl", plan, seed, **settings) for seed in range(5)]
    assert sum(map(replay, logs)) > 20


def test_a_run_of_a_cluster_is_decided_again_as_it_was(tmp_path: Path) -> None:
    spec = cluster_spec(str(save_tiny_model("qwen2", tmp_path / "model")), tmp_path / "store")
    path = tmp_path / "decisions.jsonl"
    scheduler = replace(spec.scheduler, read_plan="split", fetch_period_s=0.002, decision_log=str(path))
    asyncio.run(conversation(replace(spec, scheduler=scheduler)))
    lines = path.read_bytes().splitlines()
    assert sum(json.loads(line).get("call") == "plan_reads" for line in lines) == 8
    assert replay(lines) >= 8


def test_a_decision_that_is_not_the_policys_is_named_with_its_line(tmp_path: Path) -> None:
    lines = log_of_walk(tmp_path / "log.jsonl", "split", 1)
    at = next(n for n, line in enumerate(lines) if json.loads(line).get("answer"))
    row = json.loads(lines[at])
    row["answer"] = [["somebody", "prefill-a", "decode-0"]]
    lines[at] = json.dumps(row).encode()
    with pytest.raises(DecisionsDiffer, match=rf"line {at + 1}: {row['call']} answered \[\['somebody'"):
        replay(lines)

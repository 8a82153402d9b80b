"""The backend on Ray: real engines in their own processes, a tiny random model."""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

import rollout
from rollout.config import RunConfig
from rollout.tasks import Task
from rollout.types import NO_VERSION, Outcome, StopReason, Trajectory

pytestmark = pytest.mark.ray
TASKS = [Task(f"task-{i}", f"{i} and {i} more. How many?", str(2 * i)) for i in range(3)]
TOLERANCE = 1e-4


def config_for(model_dir: Path, run_dir: Path, *overrides: str) -> RunConfig:
    return rollout.load_config(
        [
            "experiment=smoke",
            "job=rollout",
            f"model.path={model_dir}",
            f"run_dir={run_dir}",
            "ray.agent_workers=1",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def backend(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[rollout.RolloutBackend]:
    config = config_for(tiny_model_dir, tmp_path_factory.mktemp("run"))
    with rollout.RolloutBackend(config) as running:
        yield running
    assert not ray.is_initialized()


def teacher_logprobs(model: torch.nn.Module, trajectory: Trajectory) -> list[float]:
    """The model's own logprobs of the sampled tokens, one forward over the whole segment."""
    segment = trajectory.segments[0]
    with torch.no_grad():
        logits = model(torch.tensor([segment.token_ids])).logits[0].log_softmax(-1)
    return [
        float(logits[position - 1, token])
        for position, (token, mask) in enumerate(zip(segment.token_ids, segment.loss_mask, strict=True))
        if mask
    ]


def sampled(trajectory: Trajectory, values: array[float]) -> list[float]:
    mask = trajectory.segments[0].loss_mask
    return [value for value, chosen in zip(values, mask, strict=True) if chosen]


def test_every_task_gives_its_group_of_whole_trajectories(backend: rollout.RolloutBackend) -> None:
    trajectories = backend.generate(TASKS)
    assert [(t.task_id, t.sample_index) for t in trajectories] == [
        (task.task_id, sample) for task in TASKS for sample in range(2)
    ]
    for trajectory in trajectories:
        trajectory.segments[0].check()
        assert trajectory.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED), trajectory.error
        assert trajectory.phases.total == pytest.approx(trajectory.duration_s, rel=0.01)
        for before, turn in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            assert turn.prompt_tokens == before.prompt_tokens + before.output_tokens + before.tool_tokens
        assert any(turn.hit_tokens > 0 for turn in trajectory.turns[1:])


def test_logprobs_are_those_of_the_model_that_was_given(
    backend: rollout.RolloutBackend, tiny_model_dir: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    for trajectory in backend.generate(TASKS[:1]):
        theirs = teacher_logprobs(model, trajectory)
        assert sampled(trajectory, trajectory.segments[0].logprobs) == pytest.approx(theirs, abs=TOLERANCE)


def test_stream_gives_trajectories_as_they_end_and_may_be_left(backend: rollout.RolloutBackend) -> None:
    ids = [trajectory.trajectory_id for trajectory in backend.stream(TASKS[:1])]
    assert len(set(ids)) == 2
    for _ in backend.stream(TASKS):
        break
    assert backend.running == []
    assert len(backend.generate(TASKS[:1])) == 2


def test_metrics_tell_what_the_store_holds_and_what_it_has_met(backend: rollout.RolloutBackend) -> None:
    backend.generate(TASKS[:1])
    backend.pause()
    backend.resume()
    metrics = backend.metrics()
    assert metrics["kv/stored_bytes"] >= metrics["kv/written_bytes"] > 0
    assert metrics["kv/evicted_bytes"] == metrics["kv/quarantined_slots"] == 0
    bad = {name: value for name, value in metrics.items() if name.startswith("kv/bad_blocks/")}
    assert set(bad) == {f"kv/bad_blocks/{reason}" for reason in ("missing", "corrupt", "failed", "timed_out")}
    assert not any(bad.values())
    assert metrics["kv/caching_stopped"] == 0
    assert metrics["kv/direct_io"] in (0, 2)


def test_metrics_tell_how_well_prefill_batches_were_foreseen(backend: rollout.RolloutBackend) -> None:
    backend.generate(TASKS[:1])
    metrics = backend.metrics()
    assert metrics["engines/prefill-0-0/rows"] >= metrics["engines/prefill-0-0/forwards"] > 0
    assert metrics["scheduler/estimate_mape"] >= 0
    assert metrics["scheduler/forward_mape"] >= 0


def test_a_submitted_trajectory_can_be_aborted_and_still_comes_back(
    backend: rollout.RolloutBackend,
) -> None:
    backend.pause()
    first, second = backend.submit(TASKS[0])
    # Paused, no turn can end by itself; the abort must end it.
    deadline = 100
    while first not in {r.trajectory_id for r in backend.running} and deadline:
        deadline -= 1
        backend.metrics()
    backend.abort(first)
    aborted = backend.result(first, deadline_s=30)
    assert aborted.stop_reason is StopReason.ABORTED
    backend.resume()
    assert backend.result(second, deadline_s=60).outcome in (Outcome.COMPLETED, Outcome.TRUNCATED)


def test_new_weights_sample_and_old_kv_is_never_hit(
    backend: rollout.RolloutBackend, tiny_model_dir: Path
) -> None:
    backend.generate(TASKS)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    version = backend.weights_version + 1
    assert backend.metrics()["scheduler/indexed_blocks"] > 0
    backend.update_weights(version, model.named_parameters())
    # Nothing is left that could be hit; what turns hit from here on was stored under the new weights.
    assert backend.metrics()["scheduler/indexed_blocks"] == 0
    trajectories = backend.generate(TASKS)
    assert any(trajectory.turns[0].hit_tokens == 0 for trajectory in trajectories)
    for trajectory in trajectories:
        segment = trajectory.segments[0]
        assert set(segment.weights_versions) == {NO_VERSION, version}
        theirs = teacher_logprobs(model, trajectory)
        assert sampled(trajectory, segment.logprobs) == pytest.approx(theirs, abs=TOLERANCE)
    with pytest.raises(ValueError, match="version must be >"):
        backend.update_weights(version, [])


def test_the_async_twin_serves_the_same_seed_with_the_same_tokens_on_two_ray_nodes(
    tiny_model_dir: Path, tmp_path: Path, backend: rollout.RolloutBackend
) -> None:
    from rollout.async_backend import AsyncRolloutBackend

    backend.close()
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    os.environ.update(environment)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.2"},
    )
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3")

    async def run(address: str | None, name: str) -> tuple[list[Trajectory], set[str]]:
        overrides = [f"ray.address={address}"] if address else []
        config = config_for(tiny_model_dir, tmp_path / name, *overrides)
        async with AsyncRolloutBackend(config) as running:
            # Two Ray nodes, yet one kernel: memory can be shared, and is.
            assert "all nodes on one host" in running.transport.told
            trajectories = await running.generate(TASKS)
            nodes = {n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]} if address else set()
            return trajectories, nodes

    try:
        ours, nodes = asyncio.run(run(cluster.address, "two-nodes"))
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    alone, _ = asyncio.run(run(None, "one-node"))
    assert nodes == {"127.0.0.2", "127.0.0.3"}
    assert [t.segments for t in ours] != []
    for one, other in zip(ours, alone, strict=True):
        assert one.segments[0].token_ids == other.segments[0].token_ids

"""A storage NIC that slows down in the middle of a request: the other side reads what it has not begun."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engines.cluster import ClusterSpec, EngineCluster
from engines.cluster_config import ClusterConfig
from engines.measured import NodeBytes
from engines.types import NodeId, RequestId, SamplingParams, TurnResult
from tests.engines.conversations import assert_same
from tests.engines.fakes import random_ids
from tests.engines.local_cluster import cluster_spec, running_cluster, with_store
from tests.engines.tiny_models import save_tiny_model

BLOCK_BYTES, RECORD_BYTES = 6 << 10, 12 << 10
RATES = ClusterConfig(200.0 * BLOCK_BYTES, None, None, h2d="copy", traffic_classes=True)
PROMPT_TOKENS = (1600, 24, 24)
"""What each turn appends; the last one's reads are disturbed."""
READ_BEFORE = 12
"""Blocks of those that the node has read when its storage NIC falls to a tenth of its rate."""


@dataclass(frozen=True)
class Done:
    turns: list[TurnResult]
    unread: int
    """Blocks that the slow node had not read when it became slow."""
    moved: int
    """Blocks that it gave up."""
    moved_back: int
    """Blocks that the other node gave up."""
    figures: dict[str, float]


def spec_of(model_path: str, directory: Path) -> ClusterSpec:
    """A chunk has 4 blocks, and two are in flight."""
    spec = cluster_spec(model_path, directory, decode_kv_bytes=4 << 20, prefill_batch_tokens=4096)
    spec = replace(spec, scheduler=replace(spec.scheduler, read_plan="split"), rates=RATES)
    return with_store(spec, read_chunk_bytes=4 * RECORD_BYTES, staging_bytes=16 << 20)


async def slow_down(cluster: EngineCluster, slow: NodeId, read_before: int) -> None:
    """Cut the rate of the node's storage NIC once it has read so many blocks."""
    while blocks_read(await cluster.nodes[slow].moved()) < read_before + READ_BEFORE:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await cluster.nodes[slow].set_snic_rate(RATES.snic_bytes_per_s / 10)


def blocks_read(moved: NodeBytes) -> int:
    return (moved.read_prefill_side + moved.read_decode_side) // BLOCK_BYTES


def blocks_moved(moved: NodeBytes) -> int:
    return (moved.moved_to_prefill + moved.moved_to_decode) // BLOCK_BYTES


async def three_turns(spec: ClusterSpec, slow: NodeId | None) -> Done:
    """The third one's reads slow down on the node `slow` once it has read an eighth of them."""
    here = slow or NodeId("prefill-0")
    async with running_cluster(spec) as cluster:
        assert cluster.layout.full_block_bytes == BLOCK_BYTES
        client = cluster.client_parts().client()
        context = client.open_context()
        turns = []
        for number, appended in enumerate(PROMPT_TOKENS):
            before = await cluster.storage_bytes()
            cutting = None
            if number == 2 and slow is not None:
                cutting = asyncio.create_task(slow_down(cluster, slow, blocks_read(before[slow])))
            context.append(random_ids(appended, seed=number))
            name, sampling = RequestId(f"turn-{number}"), SamplingParams(max_tokens=4)
            turns.append(await client.run_turn(context, name, sampling, 60.0))
            if cutting is not None:
                await asyncio.wait_for(cutting, 60.0)
            context.append(turns[-1].token_ids)
            await cluster.pause(30)
            await cluster.resume()
        after = await cluster.storage_bytes()
        moved = {node: blocks_moved(now) - blocks_moved(before[node]) for node, now in after.items()}
        read = blocks_read(after[here]) - blocks_read(before[here])
        return Done(
            turns=turns,
            unread=read + moved[here] - READ_BEFORE,
            moved=moved[here],
            moved_back=sum(moved.values()) - moved[here],
            figures=await cluster.scheduler.figures(),
        )


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def undisturbed(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return asyncio.run(three_turns(spec_of(model_path, tmp_path_factory.mktemp("store")), None))


@pytest.mark.parametrize("slow", [NodeId("prefill-0"), NodeId("decode-0")])
def test_when_a_storage_nic_falls_to_a_tenth_most_of_what_is_unread_moves_and_no_token_changes(
    slow: NodeId, model_path: str, undisturbed: Done, tmp_path: Path
) -> None:
    done = asyncio.run(three_turns(spec_of(model_path, tmp_path), slow))
    assert_same(done.turns, undisturbed.turns)
    assert [turn.num_attempts for turn in done.turns] == [1, 1, 1]
    assert done.unread > 50
    assert done.moved >= 0.7 * done.unread
    assert done.figures["moved_blocks"] > 0

"""A cluster on a store that loses, damages, fills up or forgets: the same tokens, and the job goes on.

Each conversation is compared with the same one on a cluster and a store that nothing happens to.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.cluster import ClusterSpec, EngineCluster
from engines.model.runner import NamedArray
from engines.types import AnnouncedBlock, BlockPersist, SlotId, TurnResult, Weights
from kvstore.checksum import layer_checksums
from kvstore.keys import BlockKey, weights_id_after_update
from kvstore.staging import StagingMemory
from tests.engines.conversations import Conversation, assert_same, conversation, converse, one_turn
from tests.engines.fakes import Gate, GatedStore, Parts
from tests.engines.faulty_files import FailingFiles, FlippingFiles, GatedFiles
from tests.engines.local_cluster import cluster_spec, running_cluster, with_store
from tests.engines.tiny_models import save_tiny_model

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def clean(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Conversation:
    """The conversation to which nothing happens."""
    return asyncio.run(conversation(cluster_spec(model_path, tmp_path_factory.mktemp("clean"))))


async def until_figure(cluster: EngineCluster, name: str, value: float) -> None:
    """Return when the scheduler's figure is `value`."""
    end_s = time.monotonic() + PATIENCE_S
    while (await cluster.scheduler.figures())[name] != value:
        assert time.monotonic() < end_s, await cluster.scheduler.figures()
        await asyncio.sleep(0.01)


def segment_bytes(directory: Path) -> int:
    """Bytes of all segments; one may go meanwhile."""
    total = 0
    for path in directory.glob("*.kv"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


# What the medium does ---------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_a_medium_that_flips_bits_in_what_it_returns_costs_time_and_changes_no_token(
    rate: float, model_path: str, clean: Conversation, tmp_path: Path
) -> None:
    files = FlippingFiles(rate, seed=3)

    async def flip_from_turn_1(cluster: EngineCluster, turn: int) -> None:
        files.flipping = True

    parts = Parts(files={"prefill-0": files})
    done = asyncio.run(conversation(cluster_spec(model_path, tmp_path), parts, flip_from_turn_1))
    assert_same(done.turns, clean.turns)
    assert files.num_flipped > 0
    assert sum(done.bad_reads.values()) >= 1
    assert done.figures["lost_blocks"] == sum(done.bad_reads.values())


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_when_the_store_takes_no_more_the_job_goes_on_with_what_it_has(
    error: int, model_path: str, clean: Conversation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FailingFiles(error)

    async def fail_from_turn_3(cluster: EngineCluster, turn: int) -> None:
        files.failing = turn >= 3

    spec = with_store(cluster_spec(model_path, tmp_path), segment_bytes=64 << 10)
    parts = Parts(files={"decode-0": files})
    done = asyncio.run(conversation(spec, parts, fail_from_turn_3))
    assert_same(done.turns, clean.turns)
    assert files.num_failed > 0
    assert done.hit_tokens[:4] == clean.hit_tokens[:4]
    # What was stored until then is hit to the end.
    assert done.hit_tokens[7] == done.hit_tokens[4] == clean.hit_tokens[4] > 0
    assert sum("no more blocks" in record.message for record in caplog.records) == 1


def test_slots_of_a_read_that_is_late_come_back_when_it_ends(
    model_path: str, clean: Conversation, tmp_path: Path
) -> None:
    files = GatedFiles()
    seen: list[float] = []

    async def stand_still_in_turn_4(cluster: EngineCluster, turn: int) -> None:
        if turn == 3:
            files.reads.shut()
        if turn == 4:
            seen.append((await cluster.scheduler.figures())["quarantined_slots"])
            files.reads.open()
            await until_figure(cluster, "quarantined_slots", 0)

    spec = with_store(cluster_spec(model_path, tmp_path), deadline_s=1.0)
    done = asyncio.run(conversation(spec, Parts(files={"prefill-0": files}), stand_still_in_turn_4))
    assert_same(done.turns, clean.turns)
    assert seen[0] > 0
    assert done.turns[4].num_attempts == 2
    assert done.bad_reads["timed_out"] == done.figures["lost_blocks"] > 0


# Eviction ---------------------------------------------------------------------------------------


def test_under_load_the_directory_stays_within_its_capacity_and_no_token_changes(
    model_path: str, clean: Conversation, tmp_path: Path
) -> None:
    capacity_bytes = 512 << 10
    most = 0

    async def look(cluster: EngineCluster, turn: int) -> None:
        nonlocal most
        most = max(most, segment_bytes(tmp_path))

    async def run() -> tuple[Conversation, dict[str, float]]:
        spec = with_store(
            cluster_spec(model_path, tmp_path), capacity_bytes=capacity_bytes, segment_bytes=64 << 10
        )
        async with running_cluster(spec) as cluster:
            for seed in range(1, 6):
                await converse(cluster, look, seed)
            done = await converse(cluster, look)
            return done, await cluster.scheduler.figures()

    done, figures = asyncio.run(run())
    assert_same(done.turns, clean.turns)
    assert 0 < most <= capacity_bytes
    assert figures["evicted_bytes"] > 0
    assert figures["stored_bytes"] <= capacity_bytes
    # It caches still: what a conversation has just stored is not what goes first.
    assert sum(done.hit_tokens) > 0.5 * sum(clean.hit_tokens)


# Who finds what ---------------------------------------------------------------------------------


def test_a_job_that_starts_again_on_the_same_path_hits_what_was_written(
    model_path: str, clean: Conversation, tmp_path: Path
) -> None:
    spec = cluster_spec(model_path, tmp_path)
    first = asyncio.run(conversation(spec))
    again = asyncio.run(conversation(replace(spec, run_id="again")))
    assert first.hit_tokens == clean.hit_tokens
    assert_same(again.turns, clean.turns)
    assert again.hit_tokens[0] == 16  # of 20 prompt tokens
    assert again.moved.read_prefill_side == sum(again.hit_tokens) // 8 * block_bytes(spec)


def block_bytes(spec: ClusterSpec) -> int:
    """Of a Full Block of the tiny model: 3 layers of 256 bytes a token."""
    return 3 * 256 * spec.kvstore.block_tokens


def test_two_runs_at_version_1_with_different_weights_share_no_block(model_path: str, tmp_path: Path) -> None:
    async def run(run_id: str, directory: Path) -> Conversation:
        spec = replace(cluster_spec(model_path, directory), run_id=run_id)
        async with running_cluster(spec) as cluster:
            version_0 = await converse(cluster)
            weights_id = weights_id_after_update(spec.weights.weights_id, run_id, 1)
            await cluster.update_weights(Weights(1, weights_id), moved_weights(model_path, run_id), 30)
            version_1 = await converse(cluster)
            return replace(version_1, turns=[*version_0.turns[:1], *version_1.turns])

    shared = tmp_path / "shared"
    one = asyncio.run(run("one", shared))
    two = asyncio.run(run("two", shared))
    alone = asyncio.run(run("two", tmp_path / "alone"))
    assert one.hit_tokens[:2] == [0, 0]
    assert two.hit_tokens[:2] == [16, 0], "version 0 is shared, version 1 is not"
    assert_same(two.turns[1:], alone.turns[1:])
    assert two.hit_tokens[1:] == alone.hit_tokens[1:]
    assert [turn.token_ids for turn in two.turns[1:]] != [turn.token_ids for turn in one.turns[1:]]


async def moved_weights(model_path: str, run_id: str) -> AsyncIterator[Sequence[NamedArray]]:
    """The model's weights after a training step that is the run's own."""
    generator = torch.Generator().manual_seed(sum(run_id.encode()))
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        yield [(name, (parameter + 0.05 * noise).detach().numpy())]


async def no_buckets() -> AsyncIterator[Sequence[NamedArray]]:
    for bucket in ():
        yield bucket


def test_a_write_that_ends_after_the_update_publishes_nothing_and_its_segment_goes_first(
    model_path: str, tmp_path: Path
) -> None:
    gate = Gate()
    parts = Parts(
        store=lambda store, name: (
            GatedStore(store, reads=Gate(), writes=gate) if name == "prefill-0" else store
        )
    )
    spec = with_store(
        cluster_spec(model_path, tmp_path),
        capacity_bytes=512 << 10,
        segment_bytes=64 << 10,
        refresh_s=0.05,
    )

    async def run() -> None:
        async with running_cluster(spec, parts.spawn) as cluster:
            gate.shut()
            key, parent = BlockKey(b"k" * 16), BlockKey(b"p" * 16)
            late = asyncio.create_task(persist_something(cluster, key, parent, spec.weights))
            await gate.reached()
            new = Weights(1, weights_id_after_update(spec.weights.weights_id, spec.run_id, 1))
            await cluster.update_weights(new, no_buckets(), 30)
            gate.open()
            (location,) = await late
            announced = [AnnouncedBlock(key, parent, location)]
            await cluster.scheduler.announce(announced, [], spec.weights.weights_id)
            assert (await cluster.scheduler.figures())["indexed_blocks"] == 0
            await until_figure(cluster, "stored_bytes", segment_bytes(tmp_path))
            assert segment_bytes(tmp_path) > 0
            seed = 0
            while (tmp_path / location.segment).exists():
                seed += 1
                assert seed < 10, "the old version's segment is never evicted"
                await converse(cluster, seed=seed)
            assert segment_bytes(tmp_path) > 0, "newer blocks went too"

    asyncio.run(run())


async def persist_something(
    cluster: EngineCluster, key: BlockKey, parent: BlockKey, weights: Weights
) -> tuple[object, ...]:
    """What a decode engine of those weights has its node write."""
    node = cluster.nodes["prefill-0"]
    staging = StagingMemory.attach(await node.handle())
    slot = staging.num_slots - 1
    staging.slot(slot)[:] = 7
    block = BlockPersist(SlotId(slot), key, parent, layer_checksums(cluster.layout, staging.slot(slot)))
    found: tuple[object, ...] = await node.persist([block], weights.weights_id, 30.0)
    staging.close()
    return found


# The DRAM tier ----------------------------------------------------------------------------------


def test_blocks_kept_in_memory_are_not_read_again_and_change_no_token(
    model_path: str, clean: Conversation, tmp_path: Path
) -> None:
    spec = with_store(cluster_spec(model_path, tmp_path), dram_bytes=1 << 20)
    done = asyncio.run(conversation(spec))
    assert_same(done.turns, clean.turns)
    assert done.hit_tokens == clean.hit_tokens
    assert done.moved.read_dram > done.moved.read_prefill_side > 0
    assert done.moved.read_dram + done.moved.read_prefill_side == clean.moved.read_prefill_side


def test_a_bit_that_flips_in_memory_is_a_miss_there_and_the_store_still_has_the_block(
    model_path: str, clean: Conversation, tmp_path: Path
) -> None:
    async def flip_all(cluster: EngineCluster, turn: int) -> None:
        if turn == 4:
            staging = StagingMemory.attach(await cluster.nodes["prefill-0"].handle())
            staging.buffer[100 :: cluster.layout.slot_bytes] ^= np.uint8(4)
            staging.close()

    spec = with_store(cluster_spec(model_path, tmp_path), dram_bytes=1 << 20)
    done = asyncio.run(conversation(spec, between=flip_all))
    assert_same(done.turns, clean.turns)
    assert done.hit_tokens == clean.hit_tokens
    assert done.turns[5].num_attempts == 2
    assert done.bad_reads["corrupt"] > 0
    assert done.figures["lost_blocks"] == 0


def test_crowded_conversations_share_what_is_kept_and_change_no_token(
    model_path: str, clean: Conversation, tmp_path: Path
) -> None:
    # Prompts need the memory that blocks are kept in, again and again.
    async def run() -> list[list[TurnResult]]:
        slots = 80 * (8 << 10)
        spec = with_store(cluster_spec(model_path, tmp_path), staging_bytes=slots, dram_bytes=slots // 2)
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()

            async def talk(seed: int) -> list[TurnResult]:
                context = client.open_context()
                return [await one_turn(client, context, turn, seed) for turn in range(8)]

            turns = await asyncio.gather(*(talk(seed) for seed in range(6)))
            assert (await cluster.nodes["prefill-0"].moved()).read_dram > 0
            return turns

    assert_same(asyncio.run(run())[0], clean.turns)

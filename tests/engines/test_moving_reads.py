"""A storage NIC that slows down in the middle of a request: the other side reads what it has not begun."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engines.cluster import ClusterSpec
from engines.types import RequestId, SamplingParams, TurnResult
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockStore, BlockWrite
from tests.engines.conversations import assert_same
from tests.engines.fakes import Parts, random_ids
from tests.engines.local_cluster import cluster_spec, running_cluster, with_store
from tests.engines.tiny_models import save_tiny_model

BLOCKS_PER_S = 200.0
PROMPT_TOKENS = (1600, 24, 24)
"""What each turn appends; the last one's reads are disturbed."""


@dataclass
class Nic:
    """A storage NIC that carries blocks one by one; at block `slow_from` it falls to a tenth of its rate."""

    blocks_per_s: float = BLOCKS_PER_S
    passed: int = 0
    slow_from: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, num_blocks: int) -> None:
        for _ in range(num_blocks):
            with self.lock:
                time.sleep(1 / self.blocks_per_s)
                self.passed += 1
                if self.passed == self.slow_from:
                    self.blocks_per_s /= 10


class NicStore:
    """A store behind such a NIC."""

    def __init__(self, store: BlockStore, nic: Nic) -> None:
        self._store = store
        self._nic = nic

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        self._nic.carry(len(reads))
        return self._store.read(reads, deadline_s)

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        return self._store.write(writes, deadline_s)

    def close(self) -> None:
        self._store.close()


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
    spec = replace(spec, scheduler=replace(spec.scheduler, read_plan="split"))
    return with_store(spec, read_chunk_bytes=4 * (12 << 10), staging_bytes=16 << 20)


async def three_turns(spec: ClusterSpec, slow: str | None) -> Done:
    """The third one's reads slow down on the node `slow` once it has read an eighth of them."""
    nics = {"prefill-0": Nic(), "decode-0": Nic()}
    parts = Parts(store=lambda store, name: NicStore(store, nics[name]))
    async with running_cluster(spec, parts.spawn) as cluster:
        client = cluster.client_parts().client()
        context = client.open_context()
        turns = []
        for number, appended in enumerate(PROMPT_TOKENS):
            if number == 2 and slow is not None:
                nics[slow].slow_from = nics[slow].passed + 12
            before = await cluster.storage_bytes()
            context.append(random_ids(appended, seed=number))
            name, sampling = RequestId(f"turn-{number}"), SamplingParams(max_tokens=4)
            turns.append(await client.run_turn(context, name, sampling, 60.0))
            context.append(turns[-1].token_ids)
            await cluster.pause(30)
            await cluster.resume()
        after = await cluster.storage_bytes()
        block = cluster.layout.full_block_bytes
        moved = {
            node: (
                (now.moved_to_prefill + now.moved_to_decode)
                - (before[node].moved_to_prefill + before[node].moved_to_decode)
            )
            // block
            for node, now in after.items()
        }
        read = {
            node: (now.read_prefill_side + now.read_decode_side)
            - (before[node].read_prefill_side + before[node].read_decode_side)
            for node, now in after.items()
        }
        here = slow or "prefill-0"
        return Done(
            turns=turns,
            unread=read[here] // block + moved[here] - 12,
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


@pytest.mark.parametrize("slow", ["prefill-0", "decode-0"])
def test_when_a_storage_nic_falls_to_a_tenth_most_of_what_is_unread_moves_and_no_token_changes(
    slow: str, model_path: str, undisturbed: Done, tmp_path: Path
) -> None:
    done = asyncio.run(three_turns(spec_of(model_path, tmp_path), slow))
    assert_same(done.turns, undisturbed.turns)
    assert [turn.num_attempts for turn in done.turns] == [1, 1, 1]
    assert done.unread > 50
    assert done.moved >= 0.7 * done.unread
    assert done.figures["moved_blocks"] > 0

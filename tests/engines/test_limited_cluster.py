"""A one-process cluster whose NICs have rates: the same tokens, and every byte is charged to a NIC.

What is charged is compared with what stores and transports, counted beneath everything else, have moved.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engines.cluster import ClusterSpec
from engines.cluster_config import ClusterConfig
from engines.config import ReadPlanName
from engines.types import TurnResult
from kvstore.layout import BlockLayout
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockStore, BlockWrite, ReadStatus
from kvstore.transport import Transport
from tests.engines.conversations import assert_same, eight_turns
from tests.engines.fakes import Parts
from tests.engines.local_cluster import NO_LIMITS, cluster_spec, running_cluster
from tests.engines.test_decode_side_reads import CountingTransport
from tests.engines.tiny_models import save_tiny_model

RATES = ClusterConfig(20e6, 160e6, None, h2d="cnic", traffic_classes=True)


class CountingStore:
    """A store that counts the blocks it moves."""

    def __init__(self, store: BlockStore) -> None:
        self.num_read = 0
        self.num_written = 0
        self._store = store

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        results = self._store.read(reads, deadline_s)
        self.num_read += sum(result.status is ReadStatus.OK for result in results)
        return results

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        locations = self._store.write(writes, deadline_s)
        self.num_written += sum(location is not None for location in locations)
        return locations

    def close(self) -> None:
        self._store.close()


@dataclass
class Counting(Parts):
    """Parts whose stores and transports count."""

    stores: dict[str, CountingStore] = field(default_factory=dict)
    transports: dict[str, CountingTransport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def store(real: BlockStore, name: str) -> BlockStore:
            return self.stores.setdefault(name, CountingStore(real))

        def transport(real: Transport, name: str) -> Transport:
            return self.transports.setdefault(name, CountingTransport(real))

        self.store, self.transport = store, transport


@dataclass(frozen=True)
class Charged:
    """What a conversation cost the NICs of the prefill and the decode node."""

    turns: list[TurnResult]
    layout: BlockLayout
    nic_bytes: dict[str, Counter[str]]
    storage: dict[str, dict[str, int]]
    engines: dict[str, dict[str, int]]


async def talk(spec: ClusterSpec, parts: Parts) -> Charged:
    async with running_cluster(spec, parts.spawn) as cluster:
        turns = await eight_turns(cluster, cluster.client_parts().client(), _nothing)
        engines = cluster.prefill_engines | cluster.decode_engines
        return Charged(
            turns,
            cluster.layout,
            {node_id: Counter(await node.nic_bytes()) for node_id, node in cluster.nodes.items()},
            {node_id: await node.storage_traffic() for node_id, node in cluster.nodes.items()},
            {engine_id: await engine.moved_bytes() for engine_id, engine in engines.items()},
        )


async def _nothing(cluster: object, turn: int) -> None:
    pass


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


def spec_of(model_path: str, directory: Path, plan: ReadPlanName, rates: ClusterConfig) -> ClusterSpec:
    spec = replace(cluster_spec(model_path, directory), rates=rates)
    return replace(spec, scheduler=replace(spec.scheduler, read_plan=plan))


@pytest.mark.parametrize("plan", ["basic", "split"])
def test_every_byte_that_moves_is_counted_and_charged_and_no_token_changes(
    plan: ReadPlanName, model_path: str, tmp_path: Path
) -> None:
    parts = Counting()
    done = asyncio.run(talk(spec_of(model_path, tmp_path / "limited", plan, RATES), parts))
    free = asyncio.run(talk(spec_of(model_path, tmp_path / "free", plan, NO_LIMITS), Counting()))
    assert_same(done.turns, free.turns)
    block = done.layout.full_block_bytes
    for node_id, store in parts.stores.items():
        moved = {"storage_read": store.num_read * block, "storage_write": store.num_written * block}
        assert done.storage[node_id] == moved
        nic = done.nic_bytes[node_id]
        assert (nic["snic/in/kv"], nic["snic/out/kv"]) == (moved["storage_read"], moved["storage_write"])
    sent = parts.transports["prefill-0-0"].sent_bytes
    fetched = parts.transports["prefill-0-0"].fetched_bytes
    assert sent > 0
    assert (fetched > 0) == (plan == "split")
    assert done.engines["prefill-0-0"]["engine_to_engine"] == sent + fetched
    copies = {
        engine: moved["host_to_device"] + moved["device_to_host"] for engine, moved in done.engines.items()
    }
    assert copies["decode-0-0"] > 0
    prefill, decode = done.nic_bytes["prefill-0"], done.nic_bytes["decode-0"]
    assert (prefill["cnic-0/in/kv"], prefill["cnic-0/out/kv"]) == (
        copies["prefill-0-0"] + fetched,
        copies["prefill-0-0"] + sent,
    )
    assert (decode["cnic-0/in/kv"], decode["cnic-0/out/kv"]) == (
        copies["decode-0-0"] + sent,
        copies["decode-0-0"] + fetched,
    )


def test_copies_by_copy_engines_cost_the_compute_nic_nothing(model_path: str, tmp_path: Path) -> None:
    done = asyncio.run(talk(spec_of(model_path, tmp_path, "basic", replace(RATES, h2d="copy")), Counting()))
    assert done.engines["decode-0-0"]["host_to_device"] > 0
    assert done.nic_bytes["decode-0"]["cnic-0/out/kv"] == 0


def test_model_traffic_is_counted_and_charged_as_such(model_path: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with running_cluster(spec_of(model_path, tmp_path, "basic", RATES)) as cluster:
            engine = cluster.prefill_engines["prefill-0-0"]
            await asyncio.to_thread(engine._traffic.model_traffic, 12_345, 10.0)
            assert (await engine.moved_bytes())["collective"] == 12_345
            found = await cluster.nodes["prefill-0"].nic_bytes()
            assert {name: n for name, n in found.items() if n} == {
                "cnic-0/in/model": 12_345,
                "cnic-0/out/model": 12_345,
            }

    asyncio.run(run())


def test_a_storage_nic_can_be_cut_while_the_cluster_runs(model_path: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with running_cluster(spec_of(model_path, tmp_path, "basic", RATES)) as cluster:
            node = cluster.nodes["prefill-0"]
            await node.set_snic_rate(2e6)
            with pytest.raises(ValueError, match="must be > 0"):
                await node.set_snic_rate(0)
            await eight_turns(cluster, cluster.client_parts().client(), _nothing)

    asyncio.run(run())


def test_a_cluster_without_limits_says_so_where_a_rate_is_set(model_path: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with running_cluster(cluster_spec(model_path, tmp_path)) as cluster:
            node = cluster.nodes["prefill-0"]
            assert await node.limiter() is None
            assert await node.nic_bytes() == {}
            with pytest.raises(ValueError, match=r"cluster\.snic_bytes_per_s"):
                await node.set_snic_rate(1e6)

    asyncio.run(run())


def test_a_cluster_with_a_bottleneck_starts_with_one_warning(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(rates: ClusterConfig) -> None:
        async with running_cluster(spec_of(model_path, tmp_path, "basic", rates)):
            pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(run(RATES))
        assert not caplog.records
        asyncio.run(run(replace(RATES, cnic_bytes_per_s=30e6)))
    assert [record.getMessage().split(":")[1].split(" would")[0] for record in caplog.records] == [
        " decode CNIC reads"
    ]

"""Hits read on the decode side: the same tokens as when the prefill side reads all, whatever happens there.

Each conversation is compared with the same one under `basic`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from engines.cluster import ClusterSpec, EngineCluster, start_cluster
from engines.config import ReadPlanName
from engines.errors import EngineFailed, TurnFailed
from engines.measured import NodeBytes
from engines.types import TurnResult
from kvstore.job_token import JobToken
from kvstore.open_transport import TransportSpec
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle, TransferList, Transport
from kvstore.transport_config import TransportConfig
from tests.engines.conversations import (
    SAMPLING,
    Between,
    assert_same,
    eight_turns,
    nothing,
    one_turn,
)
from tests.engines.fakes import FaultyTransport, Parts, take_turn
from tests.engines.faulty_files import FlippingFiles, GatedFiles
from tests.engines.local_cluster import cluster_spec, running_cluster, with_store
from tests.engines.test_store import until_figure
from tests.engines.tiny_models import save_tiny_model

PLANS: tuple[ReadPlanName, ...] = ("dual", "split", "alternate")
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


@dataclass(frozen=True)
class Done:
    """Eight turns, and what was moved for them."""

    turns: list[TurnResult]
    prefill_node: NodeBytes
    decode_node: NodeBytes
    between_engines: int
    """Bytes the prefill engine moved from and to another node."""
    sent: int
    """Bytes it sent."""
    bad_reads: dict[str, int]
    """Of the decode node."""
    figures: dict[str, float]
    block_bytes: int
    peak_resident_layers: int


async def talk(spec: ClusterSpec, parts: Parts | None = None, between: Between = nothing) -> Done:
    parts = parts or Parts()
    async with running_cluster(spec, parts.spawn) as cluster:
        turns = await eight_turns(cluster, cluster.client_parts().client(), between)
        sent = sum(count.sent_bytes for count in parts.counts) if isinstance(parts, Counting) else 0
        return await done_by(cluster, turns, sent)


async def done_by(cluster: EngineCluster, turns: list[TurnResult], sent: int) -> Done:
    engine = cluster.prefill_engines["prefill-0-0"]
    return Done(
        turns=turns,
        prefill_node=await cluster.nodes["prefill-0"].moved(),
        decode_node=await cluster.nodes["decode-0"].moved(),
        between_engines=(await engine.moved_bytes())["engine_to_engine"],
        sent=sent,
        bad_reads=await cluster.nodes["decode-0"].bad_reads(),
        figures=await cluster.scheduler.figures(),
        block_bytes=cluster.layout.full_block_bytes,
        peak_resident_layers=await engine.peak_resident_layers(),
    )


def spec_of(
    model_path: str, directory: Path, plan: ReadPlanName, transport: str = "shm", **changes: object
) -> ClusterSpec:
    spec = cluster_spec(model_path, directory, **changes)
    spec = replace(spec, scheduler=replace(spec.scheduler, read_plan=plan))
    return spec if transport == "shm" else replace(spec, transport=TCP)


def there_first(spec: ClusterSpec) -> ClusterSpec:
    """Hits are read on the decode side, however fast the nodes have turned out to read."""
    return replace(spec, scheduler=replace(spec.scheduler, read_plan="dual", read_tie="decode"))


TCP = TransportSpec(TransportConfig("tcp", "127.0.0.1", None, None, None), JobToken.draw())


class CountingTransport:
    """A transport that counts what goes which way."""

    def __init__(self, transport: Transport) -> None:
        self.sent_bytes = 0
        self.fetched_bytes = 0
        self._transport = transport

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._transport.read(region, lists, traffic_class, deadline_s)
        self.fetched_bytes += sum(moves.nbytes for moves in lists)

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._transport.write(region, lists, traffic_class, deadline_s)
        self.sent_bytes += sum(moves.nbytes for moves in lists)

    def close(self) -> None:
        self._transport.close()


@dataclass
class Counting(Parts):
    """Parts whose prefill engine's transport counts."""

    counts: list[CountingTransport] = field(default_factory=list)

    def __post_init__(self) -> None:
        def transport(real: Transport, name: str) -> Transport:
            if not name.startswith("prefill"):
                return real
            self.counts.append(CountingTransport(real))
            return self.counts[-1]

        self.transport = transport


@pytest.fixture(scope="module")
def basic(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The conversation whose hits the prefill side reads."""
    return asyncio.run(talk(spec_of(model_path, tmp_path_factory.mktemp("basic"), "basic"), Counting()))


# Same tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("plan", ["split", "alternate"])
def test_both_sides_read_the_tokens_stay_the_same_and_what_the_decode_side_has_is_not_sent(
    plan: ReadPlanName, transport: str, model_path: str, basic: Done, tmp_path: Path
) -> None:
    parts = Counting()
    done = asyncio.run(talk(spec_of(model_path, tmp_path, plan, transport), parts))
    assert_same(done.turns, basic.turns)
    assert [turn.hit_tokens for turn in done.turns] == [turn.hit_tokens for turn in basic.turns]
    assert [turn.num_attempts for turn in done.turns] == [1] * 8
    here, there = done.prefill_node.read_prefill_side, done.decode_node.read_decode_side
    assert here > 0
    assert there > 0
    assert here + there == basic.prefill_node.read_prefill_side
    assert done.prefill_node.read_decode_side == done.decode_node.read_prefill_side == 0
    assert done.sent == basic.sent - there
    assert sum(count.fetched_bytes for count in parts.counts) == there
    assert done.between_engines == done.sent + there
    assert done.peak_resident_layers == 2


def test_dual_reads_on_the_decode_side_while_the_prefill_side_is_busy(
    model_path: str, basic: Done, tmp_path: Path
) -> None:
    files = GatedFiles()

    async def run() -> None:
        spec = spec_of(model_path, tmp_path, "dual")
        async with running_cluster(spec, Parts(files={"prefill-0": files}).spawn) as cluster:
            client = cluster.client_parts().client()
            contexts = [client.open_context() for _ in range(2)]
            turns = [[await one_turn(client, context, 0, seed)] for seed, context in enumerate(contexts)]
            await cluster.pause(30)
            await cluster.resume()
            files.reads.shut()
            held = asyncio.create_task(one_turn(client, contexts[1], 1, seed=1))
            await files.reads.reached()
            turns[0].append(await one_turn(client, contexts[0], 1))
            assert not held.done()
            decode_node = await cluster.nodes["decode-0"].moved()
            assert (
                decode_node.read_decode_side == turns[0][1].hit_tokens // 8 * cluster.layout.full_block_bytes
            )
            files.reads.open()
            await held
            # Both have read: the queues are empty, and a tie is read on the prefill side.
            turns[0].append(await one_turn(client, contexts[0], 2))
            after = await cluster.nodes["decode-0"].moved()
            assert after.read_decode_side == decode_node.read_decode_side
            assert_same(turns[0], basic.turns[:3])

    asyncio.run(run())


@pytest.mark.parametrize("plan", PLANS)
def test_crowded_conversations_on_many_engines_change_no_token(
    plan: ReadPlanName, model_path: str, basic: Done, tmp_path: Path
) -> None:
    async def run() -> list[list[TurnResult]]:
        slots = 60 * (8 << 10)
        spec = spec_of(model_path, tmp_path, plan, decode_nodes=2, prefill_engines_per_node=2)
        spec = with_store(spec, staging_bytes=slots, dram_bytes=slots // 4)
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()

            async def talk_about(seed: int) -> list[TurnResult]:
                context = client.open_context()
                return [await one_turn(client, context, turn, seed) for turn in range(8)]

            turns = await asyncio.gather(*(talk_about(seed) for seed in range(6)))
            moved = await cluster.storage_bytes()
            assert sum(node.read_prefill_side for node in moved.values()) > 0
            assert sum(node.read_decode_side for node in moved.values()) > 0
            return turns

    assert_same(asyncio.run(run())[0], basic.turns)


# What breaks on the decode side -----------------------------------------------------------------


@pytest.mark.parametrize("plan", ["split", "alternate"])
def test_a_block_that_is_damaged_on_the_decode_side_is_a_lost_hit_and_computed_again(
    plan: ReadPlanName, model_path: str, basic: Done, tmp_path: Path
) -> None:
    files = FlippingFiles(0.2, seed=3)

    async def flip_from_turn_1(cluster: EngineCluster, turn: int) -> None:
        files.flipping = True

    done = asyncio.run(
        talk(spec_of(model_path, tmp_path, plan), Parts(files={"decode-0": files}), flip_from_turn_1)
    )
    assert_same(done.turns, basic.turns)
    assert files.num_flipped > 0
    assert done.figures["lost_blocks"] == sum(done.bad_reads.values()) >= 1
    assert sum(turn.num_attempts for turn in done.turns) > 8


def test_slots_of_a_late_read_on_the_decode_side_are_set_aside_and_come_back_when_it_ends(
    model_path: str, basic: Done, tmp_path: Path
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

    spec = with_store(there_first(spec_of(model_path, tmp_path, "dual")), deadline_s=1.0)
    done = asyncio.run(talk(spec, Parts(files={"decode-0": files}), stand_still_in_turn_4))
    assert_same(done.turns, basic.turns)
    assert seen[0] > 0
    assert done.turns[4].num_attempts == 2
    assert done.bad_reads["timed_out"] == done.figures["lost_blocks"] == seen[0]


@pytest.mark.parametrize("fault", ["flip", "fail"])
def test_a_fetch_that_fails_or_brings_a_flipped_bit_costs_an_attempt_and_changes_no_token(
    fault: str, model_path: str, basic: Done, tmp_path: Path
) -> None:
    # Nobody but the prefill engine would see the flip: what it sends on is made from the bad block.
    transport = FaultyTransport()
    parts = Parts(transport=lambda real, name: transport.around(real) if "prefill" in name else real)

    async def break_turn_3(cluster: EngineCluster, turn: int) -> None:
        if turn == 2:
            transport.flip_read, transport.num_reads_to_fail = fault == "flip", int(fault == "fail")

    done = asyncio.run(talk(there_first(spec_of(model_path, tmp_path, "dual")), parts, break_turn_3))
    assert_same(done.turns, basic.turns)
    assert [turn.num_attempts for turn in done.turns] == [2 if i == 3 else 1 for i in range(8)]
    assert not transport.flip_read


class Mortal:
    """A node agent or engine that can be made to answer nobody any more."""

    def __init__(self, part: Any, name: str) -> None:
        self.dead = False
        self._part = part
        self._name = name

    def __getattr__(self, method: str) -> Any:
        real = getattr(self._part, method)
        if not inspect.iscoroutinefunction(real) or method == "close":
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise EngineFailed(f"{self._name} is dead")
            return await real(*args, **kwargs)

        return call


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_decode_node_that_dies_in_the_middle_of_a_relay_costs_an_attempt_and_its_slots(
    transport: str, model_path: str, basic: Done, tmp_path: Path
) -> None:
    mortals: dict[str, Mortal] = {}
    relay = FaultyTransport()

    def peer(part: Any, name: str) -> Any:
        if not name.startswith(("decode", "node-decode")):
            return part
        return mortals.setdefault(name, Mortal(part, name))

    async def run() -> tuple[list[TurnResult], dict[str, float], int]:
        spec = there_first(spec_of(model_path, tmp_path, "dual", transport, decode_nodes=2))
        parts = Parts(
            peer=peer, transport=lambda real, name: relay.around(real) if "prefill" in name else real
        )
        cluster = await start_cluster(parts.spawn, spec)
        try:
            client = cluster.client_parts().client()
            context = client.open_context()
            turns = [await one_turn(client, context, turn) for turn in range(4)]
            await cluster.pause(30)
            await cluster.resume()
            relay.reads.shut()
            relayed = asyncio.create_task(one_turn(client, context, 4))
            await relay.reads.reached()
            placed = relay.region_read
            for name in (f"node-{placed}", f"{placed}-0"):
                mortals[name].dead = True
            relay.num_reads_to_fail = 1
            relay.reads.open()
            turns.append(await asyncio.wait_for(relayed, PATIENCE_S))
            cluster.scheduler.check()
            return turns, await cluster.scheduler.figures(), cluster.layout.block_tokens
        finally:
            for mortal in mortals.values():
                mortal.dead = False
            await cluster.close()

    turns, figures, block_tokens = asyncio.run(run())
    assert_same(turns, basic.turns[:5])
    assert turns[4].num_attempts == 2
    # Nobody can say whether the dead node's engine touches its slots still.
    assert figures["quarantined_slots"] >= turns[4].prompt_tokens // block_tokens


def test_when_the_decode_node_gives_no_answer_to_a_read_its_slots_are_set_aside(
    model_path: str, tmp_path: Path
) -> None:
    mortals: dict[str, Mortal] = {}

    def peer(part: Any, name: str) -> Any:
        return mortals.setdefault(name, Mortal(part, name)) if name.startswith("node-decode") else part

    async def run() -> dict[str, float]:
        spec = there_first(spec_of(model_path, tmp_path, "dual"))
        cluster = await start_cluster(Parts(peer=peer).spawn, spec)
        try:
            client = cluster.client_parts().client()
            context = client.open_context()
            for turn in range(3):
                await one_turn(client, context, turn)
            await cluster.pause(30)
            await cluster.resume()
            mortals["node-decode-0"].dead = True
            context.append([1] * 9)
            with pytest.raises(TurnFailed, match="node-decode-0 is dead"):
                await take_turn(client, context, "turn-3", SAMPLING, 9)
            cluster.scheduler.check()
            figures: dict[str, float] = await cluster.scheduler.figures()
            return figures
        finally:
            await cluster.close()

    figures = asyncio.run(run())
    assert figures["placed"] == 0
    assert figures["quarantined_slots"] > 0

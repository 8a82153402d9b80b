"""What breaks, and what the caller sees of it: never other tokens, at worst a TurnFailed.

Each conversation is compared with the same one on a cluster where nothing breaks.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engines.cluster import EngineCluster, start_cluster
from engines.errors import TurnFailed
from engines.types import TurnResult
from kvstore.block_record import record_bytes, record_header_bytes
from kvstore.errors import LateWrite
from kvstore.layout import PAGE_BYTES, BlockLayout
from tests.engines.conversations import SAMPLING, assert_same, conversation, eight_turns
from tests.engines.fakes import (
    FaultyTransport,
    FullStore,
    Parts,
    WatchedDecode,
    WatchedRunner,
    take_turn,
)
from tests.engines.faulty_files import GatedFiles
from tests.engines.local_cluster import cluster_spec, running_cluster
from tests.engines.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def clean(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> list[TurnResult]:
    """The conversation where nothing breaks."""
    return asyncio.run(conversation(cluster_spec(model_path, tmp_path_factory.mktemp("clean")))).turns


# The store --------------------------------------------------------------------------------------


def flip_bits(store: Path, layout: BlockLayout, rate: float, rng: random.Random, *, first: bool) -> None:
    """Flip one bit in each stored block with probability `rate`; in the very first one for sure."""
    for number, path in enumerate(sorted(store.glob("*.kv"))):
        with path.open("r+b") as file:
            for start in range(PAGE_BYTES, path.stat().st_size, record_bytes(layout)):
                is_first = first and number == 0 and start == PAGE_BYTES
                if rng.random() >= rate and not is_first:
                    continue
                place = start + record_header_bytes(layout) + rng.randrange(layout.full_block_bytes)
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ (1 << rng.randrange(8))]))


def lose_segments(store: Path, layout: BlockLayout, *, cut: bool) -> None:
    """Remove every segment, or cut it in the middle of its first block."""
    for path in store.glob("*.kv"):
        if cut:
            os.truncate(path, PAGE_BYTES + record_header_bytes(layout) + 1)
        else:
            path.unlink()


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_bits_that_flip_on_the_disk_cost_time_and_change_no_token(
    rate: float, model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    rng = random.Random(5)

    async def flip(cluster: EngineCluster, turn: int) -> None:
        flip_bits(tmp_path, cluster.layout, rate, rng, first=turn == 3)

    done = asyncio.run(conversation(cluster_spec(model_path, tmp_path), between=flip))
    assert_same(done.turns, clean)
    assert done.figures["lost_blocks"] == done.bad_reads["corrupt"] > 0
    assert sum(turn.hit_tokens for turn in done.turns) < sum(turn.hit_tokens for turn in clean)


@pytest.mark.parametrize("how", ["removed", "cut short"])
def test_a_segment_that_is_gone_is_a_miss(
    how: str, model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    async def lose(cluster: EngineCluster, turn: int) -> None:
        if turn == 0:
            lose_segments(tmp_path, cluster.layout, cut=how == "cut short")

    done = asyncio.run(conversation(cluster_spec(model_path, tmp_path), between=lose))
    assert_same(done.turns, clean)
    assert done.turns[1].hit_tokens == 0
    assert done.figures["lost_blocks"] == done.bad_reads["missing"] > 0


def test_a_store_that_takes_nothing_ends_caching_and_not_the_job(
    model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    parts = Parts(store=lambda store, name: FullStore(store))
    done = asyncio.run(conversation(cluster_spec(model_path, tmp_path), parts))
    assert_same(done.turns, clean)
    assert {turn.hit_tokens for turn in done.turns} == {0}
    assert {turn.num_attempts for turn in done.turns} == {1}
    assert done.figures["lost_blocks"] == 0


# The transport ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "op"),
    [(0, 0), (0, -1), (3, 0), (3, -1)],
    ids=["new block", "new tail", "forwarded hit", "new after a hit"],
)
def test_a_bit_that_flips_between_engines_is_seen_at_the_hand_over(
    turn: int, op: int, model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    transport = FaultyTransport()
    parts = Parts(transport=lambda real, name: transport.around(real) if "prefill" in name else real)

    async def flip_next(cluster: EngineCluster, done: int) -> None:
        if done == turn - 1:
            transport.flip_op = op

    if turn == 0:
        transport.flip_op = op
    done = asyncio.run(conversation(cluster_spec(model_path, tmp_path), parts, flip_next))
    assert_same(done.turns, clean)
    assert [t.num_attempts for t in done.turns] == [2 if i == turn else 1 for i in range(8)]
    assert transport.flip_op is None


def test_a_turn_that_fails_every_time_raises_and_the_next_one_works(
    model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    transport = FaultyTransport()
    parts = Parts(transport=lambda real, name: transport.around(real) if "prefill" in name else real)

    async def run() -> TurnResult:
        async with running_cluster(cluster_spec(model_path, tmp_path), parts.spawn) as cluster:
            client = cluster.client_parts().client()
            transport.num_to_fail = 1000
            with pytest.raises(TurnFailed, match=r"turn-0 failed 3 times, the last time: .*the cable is out"):
                await take_turn(client, client.open_context(), "turn-0", SAMPLING, 20)
            transport.num_to_fail = 0
            return await take_turn(client, client.open_context(), "turn-0", SAMPLING, 20)

    assert asyncio.run(run()).token_ids == clean[0].token_ids


def test_a_turn_is_not_retried_before_the_last_write_of_the_first_attempt_has_ended(
    model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    # The first write fails, the second is slow: left behind, it would write into the slots of the retry.
    transport = FaultyTransport()
    transport.num_to_fail, transport.num_slow = 1, 1
    parts = Parts(transport=lambda real, name: transport.around(real) if "prefill" in name else real)
    done = asyncio.run(conversation(cluster_spec(model_path, tmp_path), parts))
    assert_same(done.turns, clean)
    assert done.turns[0].num_attempts == 2
    assert transport.most_in_flight == 1


def test_slots_that_a_failed_write_may_still_reach_are_given_to_nobody(
    model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    transport = FaultyTransport()
    transport.num_to_fail, transport.failure = 1, LateWrite("the peer does not answer")
    parts = Parts(transport=lambda real, name: transport.around(real) if "prefill" in name else real)

    async def run() -> tuple[TurnResult, dict[str, float]]:
        cluster = await start_cluster(parts.spawn, cluster_spec(model_path, tmp_path))
        try:
            client = cluster.client_parts().client()
            result = await take_turn(client, client.open_context(), "turn-0", SAMPLING, 20)
            cluster.scheduler.check()
            return result, await cluster.scheduler.figures()
        finally:
            await cluster.close()

    result, figures = asyncio.run(run())
    assert (result.token_ids, result.num_attempts) == (clean[0].token_ids, 2)
    assert figures["quarantined_slots"] > 0


# Engines ----------------------------------------------------------------------------------------


def test_a_turn_that_a_decode_engine_gives_up_goes_on_at_the_other(
    model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    engines: dict[str, WatchedDecode] = {}

    def peer(part: Any, name: str) -> Any:
        return engines.setdefault(name, WatchedDecode(part)) if name.startswith("decode") else part

    async def refuse_the_next(cluster: EngineCluster, turn: int) -> None:
        if turn == 3:
            for name, number in zip(engines, count(), strict=False):
                engines[name].num_asked, engines[name].num_to_refuse = 0, 1 - number

    done = asyncio.run(
        conversation(
            cluster_spec(model_path, tmp_path, decode_engines_per_node=2), Parts(peer=peer), refuse_the_next
        )
    )
    assert_same(done.turns, clean)
    assert [turn.num_attempts for turn in done.turns] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert done.turns[4].recomputed_tokens > 0
    assert engines["decode-0-0"].num_asked + engines["decode-0-1"].num_asked == 5


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_engine_whose_step_breaks_loses_no_turn(
    role: str, model_path: str, clean: list[TurnResult], tmp_path: Path
) -> None:
    # Its slots are set aside: nobody can say that it does not touch them any more. No write ends before the
    # step breaks, or a decode engine might have given all its slots back by then.
    runners: dict[str, WatchedRunner] = {}
    files = GatedFiles()

    def watched(runner: Any, name: str) -> WatchedRunner:
        return runners.setdefault(name, WatchedRunner(runner))

    async def break_one(cluster: EngineCluster, turn: int) -> None:
        if turn == 3:
            runners[f"{role}-0-0"].breaks = True
            files.writes.shut()
        if turn == 4:
            files.writes.open()

    async def run() -> tuple[list[TurnResult], dict[str, float]]:
        spec = cluster_spec(model_path, tmp_path, prefill_engines_per_node=2, decode_engines_per_node=2)
        # The client is to find out first: the watch would have the engine keep what it had.
        spec = replace(spec, scheduler=replace(spec.scheduler, heartbeat_s=60.0))
        parts = Parts(runner=watched, files={"decode-0": files})
        cluster = await start_cluster(parts.spawn, spec)
        try:
            turns = await eight_turns(cluster, cluster.client_parts().client(), break_one)
            cluster.scheduler.check()
            return turns, await cluster.scheduler.figures()
        finally:
            await cluster.close()

    turns, figures = asyncio.run(run())
    assert_same(turns, clean)
    assert turns[4].num_attempts == 2
    assert figures["placed"] == 0
    assert figures["quarantined_slots"] > 0

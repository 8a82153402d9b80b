"""The oracle: the same turns and the same hits, and not a byte of KV moves for them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from engines.cluster import ClusterSpec
from engines.measured import NodeBytes
from engines.types import RequestId, SamplingParams, TurnResult
from tests.engines.local_cluster import ENGINES, running_cluster
from tests.engines.paced import paced_spec

GREEDY = SamplingParams(max_tokens=11, temperature=0.0)


async def play(spec: ClusterSpec) -> tuple[list[TurnResult], set[int], list[NodeBytes]]:
    """A conversation whose appended ids do not depend on what is answered, and what was moved for it."""
    async with running_cluster(spec) as cluster:
        client, results = cluster.client_parts().client(), []
        context = client.open_context()
        for turn in range(5):
            context.append([(7 * turn + index) % 256 for index in range(40 if turn == 0 else 13)])
            result = await client.run_turn(context, RequestId(f"turn-{turn}"), GREEDY, 30.0)
            context.append(result.token_ids)
            results.append(result)
            await cluster.pause(30)
            await cluster.resume()
        by_hop = [await engine.moved_bytes() for engine in cluster.engines]
        moved = {nbytes for hops in by_hop for nbytes in hops.values()}
        return results, moved, list((await cluster.storage_bytes()).values())


@pytest.mark.parametrize("read_plan", ["basic", "split"])
def test_turns_hit_what_they_would_and_nothing_moves(read_plan: str, tmp_path: Path) -> None:
    specs = [paced_spec(tmp_path / f"{oracle}", oracle=oracle) for oracle in (False, True)]
    scheduler = replace(specs[0].scheduler, read_plan=read_plan)
    real, oracle = (asyncio.run(play(replace(spec, scheduler=scheduler))) for spec in specs)
    assert [turn.hit_tokens for turn in oracle[0]] == [turn.hit_tokens for turn in real[0]]
    assert [len(turn.token_ids) for turn in oracle[0]] == [len(turn.token_ids) for turn in real[0]]
    assert max(real[1]) > 0
    assert oracle[1] == {0}
    assert sum(node.storage_total for node in real[2]) > 0
    assert oracle[2] == [NodeBytes(), NodeBytes()]
    assert not list((tmp_path / "True").glob("**/*.kv"))


def test_a_dram_tier_finds_nothing_where_nothing_is_read(tmp_path: Path) -> None:
    spec = paced_spec(tmp_path, oracle=True)
    spec = replace(spec, kvstore=replace(spec.kvstore, dram_bytes=1 << 20))
    results, moved, _ = asyncio.run(play(spec))
    assert results[-1].hit_tokens > 80
    assert moved == {0}


def test_chunks_cost_the_oracle_nothing_either(tmp_path: Path) -> None:
    results, moved, _ = asyncio.run(play(paced_spec(tmp_path, oracle=True, prefill_batch_tokens=8)))
    assert results[-1].hit_tokens > 80
    assert moved == {0}


def test_a_storage_nic_limits_nothing_that_does_not_pass_it(tmp_path: Path) -> None:
    # A block would take it twenty minutes.
    spec = paced_spec(tmp_path, oracle=True)
    rates = replace(spec.rates, snic_bytes_per_s=1.0, cnic_bytes_per_s=1e9)
    spec = replace(spec, rates=rates)
    results, moved, storage = asyncio.run(play(spec))
    assert results[-1].hit_tokens > 80
    assert moved == {0}
    assert storage == [NodeBytes(), NodeBytes()]


def test_a_real_model_cannot_do_without_its_kv() -> None:
    with pytest.raises(ValueError, match=r"oracle must be false .* transformers"):
        replace(ENGINES, oracle=True)

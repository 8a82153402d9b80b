"""What comes of clusters so small that it can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.sim.result import TurnTable
from engines.sim.simulate import simulate
from engines.sim.simulated_cluster import Watch
from engines.sim.workload import SimAgent
from tests.engines.sim.some_clusters import (
    BLOCK,
    BLOCK_BYTES,
    CNIC,
    LAYER_BYTES,
    LAYERS,
    PROFILE,
    SNIC,
    agents,
    cluster,
    jct_s,
    rounds,
    run,
    scheduler,
    spec,
)

HIT, NEW, OUTPUT = 100, 20, 5
ONE = rounds((NEW, OUTPUT))
READ_S = HIT // BLOCK * BLOCK_BYTES / SNIC
LAYER_S = 1e-3 + 1e-6 * NEW
LOAD_S = HIT * LAYER_BYTES / CNIC
"""A layer's hits through the prefill GPU's compute NIC."""
SEND_S = (HIT + NEW) * LAYER_BYTES / CNIC
MISS_SEND_S = NEW * LAYER_BYTES / CNIC
COPY_S = (HIT + NEW) * LAYERS * LAYER_BYTES / CNIC
DECODE_S = 1e-2 * (OUTPUT - 1)


def test_an_agent_alone_takes_the_sum_of_its_steps() -> None:
    result = run(spec(), agents(1, ONE, history_tokens=HIT))
    # The compute NIC reads hits twice: into HBM and on to the decode node. That takes longer than a layer.
    forward_s = LOAD_S + LAYERS * LAYER_S + (LAYERS - 1) * (LOAD_S + SEND_S - LAYER_S) + SEND_S
    assert result.jct_s == pytest.approx(READ_S + forward_s + COPY_S + DECODE_S)
    turns = result.turns
    assert turns.ttft_s[0] == pytest.approx(READ_S + forward_s)
    assert turns.ttst_s[0] == pytest.approx(COPY_S + 1e-2)
    assert turns.tpot_s[0] == pytest.approx((COPY_S + DECODE_S) / (OUTPUT - 1))
    assert (turns.prompt_tokens[0], turns.hit_tokens[0], turns.output_tokens[0]) == (HIT + NEW, HIT, OUTPUT)
    assert turns.phases["kv_load"][0] == pytest.approx(
        READ_S + LOAD_S + (LAYERS - 1) * (LOAD_S + SEND_S - LAYER_S)
    )
    assert turns.phases["kv_transfer"][0] == pytest.approx(SEND_S + COPY_S)
    assert turns.phases["prefill"][0] == pytest.approx(LAYERS * LAYER_S)
    assert turns.phases["decode"][0] == pytest.approx(DECODE_S)


def test_hits_read_on_the_decode_side_pass_each_compute_nic_once() -> None:
    # With a tie the decode side reads; only what is new goes back.
    result = run(
        spec(of_scheduler=scheduler(read_plan="dual", read_tie="decode")),
        agents(1, ONE, history_tokens=HIT),
    )
    pace_s = max(LOAD_S, LAYER_S)
    forward_s = LOAD_S + LAYER_S + (LAYERS - 1) * pace_s + MISS_SEND_S
    assert result.jct_s == pytest.approx(READ_S + forward_s + COPY_S + DECODE_S)
    assert result.read_bytes["decode_side"] == sum(result.read_bytes.values()) == HIT // BLOCK * BLOCK_BYTES


def test_without_layerwise_prefill_nothing_overlaps() -> None:
    took_s = jct_s(spec(layerwise=False), agents(1, ONE, history_tokens=HIT))
    assert took_s == pytest.approx(READ_S + LAYERS * (LOAD_S + LAYER_S + SEND_S) + COPY_S + DECODE_S)


def test_where_copies_do_not_pass_the_compute_nic_only_sends_do() -> None:
    copies = replace(cluster().rates, h2d="copy")
    took_s = jct_s(spec(cluster(rates=copies)), agents(1, ONE, history_tokens=HIT))
    forward_s = LAYERS * LAYER_S + (LAYERS - 1) * max(SEND_S - LAYER_S, 0) + SEND_S
    assert took_s == pytest.approx(READ_S + forward_s + DECODE_S)


def test_an_oracle_only_computes() -> None:
    result = run(spec(oracle=True), agents(1, rounds((NEW, OUTPUT), (NEW, OUTPUT)), history_tokens=HIT))
    again_s = LAYERS * (1e-3 + 1e-6 * (NEW + OUTPUT))  # the answer fills no block
    assert result.jct_s == pytest.approx(LAYERS * LAYER_S + again_s + 2 * DECODE_S)
    assert {load.total_bytes for load in result.links} == {0}
    assert result.turns.hit_tokens.tolist() == [HIT, (HIT + NEW + OUTPUT - 1) // BLOCK * BLOCK]


def test_two_agents_read_one_after_the_other_through_one_storage_nic() -> None:
    result = run(spec(), agents(2, rounds((NEW, 1)), history_tokens=HIT))
    first_s, second_s = np.sort(result.turns.ttft_s)
    assert second_s - first_s == pytest.approx(READ_S)


def test_a_store_that_gives_less_than_its_nics_shares_it_out() -> None:
    both = cluster(prefill_nodes=2, storage_bytes_per_s=SNIC)
    one_s = jct_s(spec(both), agents(1, rounds((NEW, 1)), history_tokens=HIT))
    two = run(spec(both), agents(2, rounds((NEW, 1)), history_tokens=HIT))
    # The first read began when it was alone, and keeps its rate.
    assert two.jct_s - one_s == pytest.approx(READ_S)
    exact_s = jct_s(spec(both, sharing="max_min"), agents(2, rounds((NEW, 1)), history_tokens=HIT))
    assert exact_s == pytest.approx(two.jct_s, rel=0.01)


@pytest.mark.parametrize("plan", ["dual", "split"])
def test_where_storage_decides_one_prefill_and_two_decode_nodes_are_three_times_as_fast(plan: str) -> None:
    nodes = cluster(decode_nodes=2)
    load = agents(30, rounds(*[(NEW, 2)] * 6), history_tokens=2000)
    basic_s = jct_s(spec(nodes), load)
    assert basic_s / jct_s(spec(nodes, scheduler(read_plan=plan)), load) == pytest.approx(3, rel=0.04)


def test_alternate_reads_half_on_each_side() -> None:
    nodes = cluster(decode_nodes=2)
    load = agents(10, rounds(*[(NEW, 2)] * 4), history_tokens=200)
    read = run(spec(nodes, scheduler(read_plan="alternate", placement="round_robin")), load).read_bytes
    assert read["prefill_side"] == pytest.approx(read["decode_side"], rel=0.02)


def test_hits_are_whole_blocks_that_the_agent_has_computed_before() -> None:
    told = rounds((25, 8), (7, 4), (30, 2), keep=(-1, -1, 15))
    result = run(spec(), agents(1, told, history_tokens=13, shared_tokens=10))
    # 13 of history and 10 shared: two blocks. Then 46 tokens, of which the last has no KV. Then 15 kept.
    assert result.turns.prompt_tokens.tolist() == [38, 53, 45]
    assert result.turns.hit_tokens.tolist() == [20, 40, 10]


def test_a_prompt_that_is_stored_whole_has_its_last_block_computed() -> None:
    result = run(spec(), agents(1, rounds((10, 1)), shared_tokens=10))
    assert result.turns.hit_tokens.tolist() == [0]


def test_an_agent_waits_for_its_tools_but_not_after_its_last_round() -> None:
    plain_s = jct_s(spec(oracle=True), agents(1, rounds((NEW, OUTPUT), (NEW, OUTPUT))))
    waiting = agents(1, rounds((NEW, OUTPUT), (NEW, OUTPUT), wait_s=7.0))
    assert jct_s(spec(oracle=True), waiting) == pytest.approx(plain_s + 7)


def test_agents_start_when_they_are_told_to() -> None:
    late = [SimAgent("a", ONE, start_s=1.5), SimAgent("b", ONE, start_s=40.0)]
    result = run(spec(oracle=True), late)
    assert result.turns.submit_s.tolist() == [1.5, 40.0]
    assert result.jct_s == pytest.approx(38.5 + LAYERS * LAYER_S + DECODE_S)


def test_a_horizon_ends_it_and_leaves_what_did_not_come_so_far_unknown() -> None:
    result = run(spec(horizon_s=1.0), agents(3, rounds(*[(NEW, OUTPUT)] * 50), history_tokens=HIT))
    assert result.end_s <= 1.0
    assert result.num_finished == 0
    assert np.isnan(result.jct_s)
    assert np.isnan(result.turns.end_s).any()
    assert (result.turns.end_s[~np.isnan(result.turns.end_s)] <= 1.0).all()


def test_a_group_of_gpus_computes_as_long_as_its_slowest() -> None:
    group = cluster(prefill_nodes=2, prefill_ep_nodes=2)
    long, short = SimAgent("long", rounds((5000, 1))), SimAgent("short", rounds((10, 1)))
    together = run(spec(group, oracle=True), [long, short])
    assert together.turns.ttft_s[0] == pytest.approx(together.turns.ttft_s[1])
    assert together.forwards.members.tolist() == [2]
    assert together.forwards.prompts.tolist() == [2]
    alone = run(spec(replace(group, prefill_ep_nodes=0), oracle=True), [long, short])
    assert alone.turns.ttft_s[1] < alone.turns.ttft_s[0]
    assert alone.turns.ttft_s[0] == pytest.approx(together.turns.ttft_s[0])


def test_slots_are_reserved_before_anything_is_read_and_first_come_is_first_served() -> None:
    # Staging memory of the decode node holds one prompt of the three.
    narrow = cluster(decode_staging_bytes=13 * BLOCK_BYTES)
    result = run(spec(narrow), agents(3, ONE, history_tokens=HIT))
    assert np.all(np.diff(result.turns.end_s) > READ_S)
    assert (result.turns.phases["buffer_wait"] > 0).tolist() == [False, True, True]


def test_without_layerwise_prefill_hbm_bounds_a_batch() -> None:
    load = agents(4, rounds((NEW, 1)), history_tokens=HIT)
    wide = run(spec(layerwise=False, oracle=True), load)
    narrow_hbm = cluster(prefill_hbm_bytes=13 * BLOCK_BYTES)
    narrow = run(spec(narrow_hbm, layerwise=False, oracle=True), load)
    assert narrow.forwards.prompts.max() == 1
    assert len(narrow.forwards.group) == 4
    assert narrow.jct_s > wide.jct_s


def test_kept_blocks_are_not_read_again() -> None:
    keeping = cluster(dram_bytes=1000 * BLOCK_BYTES)
    load = agents(2, rounds(*[(NEW, OUTPUT)] * 5), history_tokens=HIT)
    plain, kept = run(spec(), load), run(spec(keeping), load)
    assert sum(kept.read_bytes.values()) == sum(plain.read_bytes.values())
    assert kept.read_bytes["dram"] > kept.read_bytes["prefill_side"] > 0
    assert kept.jct_s < plain.jct_s


def test_contexts_are_read_ahead_while_agents_wait_for_tools() -> None:
    memory = cluster(dram_bytes=1000 * BLOCK_BYTES)
    load = agents(2, rounds(*[(NEW, OUTPUT)] * 3, wait_s=10.0), history_tokens=HIT)
    plain = run(spec(memory), load)
    ahead = run(spec(memory, scheduler(prefetch=True, prefetch_blocks=4)), load)
    # A first turn reads its history; after that all that was made meanwhile is there before it is asked for.
    assert (
        ahead.read_bytes["prefill_side"] == 2 * HIT // BLOCK * BLOCK_BYTES < plain.read_bytes["prefill_side"]
    )
    assert ahead.read_bytes["ahead"] == plain.read_bytes["prefill_side"] - ahead.read_bytes["prefill_side"]
    assert ahead.turns.ttft_s[1::3].max() < plain.turns.ttft_s[1::3].min()
    assert ahead.jct_s < plain.jct_s


def test_reading_ahead_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="needs dram_bytes"):
        spec(of_scheduler=scheduler(prefetch=True))


def test_loads_that_take_longer_than_computing_are_left_out_where_that_is_set() -> None:
    slow = cluster(rates=replace(cluster().rates, snic_bytes_per_s=1e3))
    result = run(
        spec(slow, scheduler(load_only_if_faster=True)), agents(1, rounds((NEW, 1)), history_tokens=HIT)
    )
    assert result.turns.hit_tokens.tolist() == [0]
    assert result.written_bytes == NEW // BLOCK * BLOCK_BYTES


@pytest.mark.parametrize(
    ("small", "told"),
    [
        ({"decode_kv_bytes": 12 * BLOCK_BYTES}, "decode_kv_bytes"),
        ({"decode_staging_bytes": 11 * BLOCK_BYTES}, "decode_staging_bytes"),
        ({"prefill_staging_bytes": 11 * BLOCK_BYTES}, "prefill_staging_bytes"),
    ],
)
def test_a_context_that_no_buffer_holds_is_refused_in_one_line(small: dict[str, int], told: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^agent agent-0 comes to 12\d tokens, 1[23] blocks.*{told}=[^\n]*$"
    ):
        simulate(spec(cluster(**small)), agents(1, ONE, history_tokens=HIT))


def test_a_simulation_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an agent"):
        simulate(spec(), [])


def test_model_traffic_goes_before_kv_on_a_compute_nic() -> None:
    # Collectives take half of the prefill GPU's compute NIC: KV has the other half.
    half = round(0.5 * CNIC * LAYER_S / NEW)
    busy = replace(PROFILE, collective_bytes=(half, 0))
    plain_s = jct_s(spec(), agents(1, rounds((NEW, 1)), history_tokens=HIT))
    slower_s = jct_s(spec(profile=busy), agents(1, rounds((NEW, 1)), history_tokens=HIT))
    forward_s, slow_s = plain_s - READ_S, slower_s - READ_S
    assert slow_s - LAYER_S == pytest.approx(2 * (forward_s - LAYER_S), rel=1e-3)


def test_a_watch_looks_from_time_to_time_and_may_end_a_simulation() -> None:
    load, looks = agents(1, rounds(*[(NEW, OUTPUT)] * 10)), []

    def is_enough(turns: TurnTable, now_s: float) -> bool:
        looks.append((now_s, int(np.isfinite(turns.end_s).sum())))
        return len(looks) == 2

    whole = run(spec(), load)
    every_s = whole.jct_s / 4
    ended = simulate(spec(), load, Watch(every_s, is_enough))
    assert [at for at, _ in looks] == [every_s, 2 * every_s]
    assert looks[0][1] < looks[1][1] < 10
    assert (ended.end_s, ended.num_finished) == (2 * every_s, 0)
    # One that never has enough changes nothing, and does not keep a simulation going.
    assert simulate(spec(), load, Watch(every_s, lambda *_: False)).jct_s == whole.jct_s

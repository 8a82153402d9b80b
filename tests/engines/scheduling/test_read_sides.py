from __future__ import annotations

import math
from collections.abc import Set
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.read_plan import ranges_of
from engines.scheduling.read_sides import (
    ReadPlanName,
    SideLoad,
    blocks_on_prefill,
    prefill_share,
    shorter_side,
)
from engines.types import ReadRange, ReadSide
from kvstore.indexed_blocks import NO_BLOCKS, IndexedBlock, IndexedBlocks
from kvstore.keys import BlockKey
from kvstore.store import BlockLocation

BLOCK_BYTES = 4096
LOAD = st.builds(SideLoad, queue_bytes=st.floats(0, 1e6), bytes_per_s=st.floats(1, 1e6))
TIES = st.sampled_from([ReadSide.PREFILL, ReadSide.DECODE])


def hit_of(num_blocks: int) -> IndexedBlocks:
    return IndexedBlocks.of(
        [
            IndexedBlock(BlockKey(i.to_bytes(16, "big")), BlockLocation("segment", i * 4096, BLOCK_BYTES, i))
            for i in range(num_blocks)
        ]
    )


def plan_of(
    name: ReadPlanName,
    hit: IndexedBlocks,
    prefill: SideLoad,
    decode: SideLoad,
    *,
    tie: ReadSide = ReadSide.PREFILL,
    in_dram: Set[BlockKey] = frozenset(),
    num_planned: int = 0,
) -> tuple[ReadRange, ...]:
    share = blocks_on_prefill(
        name,
        sum(key not in in_dram for key in hit.keys),
        BLOCK_BYTES,
        lambda: (prefill, decode),
        num_planned=num_planned,
        tie=tie,
    )
    return ranges_of(hit, share, in_dram)


def sizes(plan: tuple[ReadRange, ...]) -> list[tuple[str, int]]:
    return [(part.side.value, len(part.blocks)) for part in plan]


def even(queue_blocks: float = 0, rate: float = 1.0) -> SideLoad:
    return SideLoad(queue_blocks * BLOCK_BYTES, rate * BLOCK_BYTES)


@pytest.mark.parametrize(
    ("prefill", "decode", "plan"),
    [
        (even(3), even(4), [("prefill", 6)]),
        (even(4), even(3), [("decode", 6)]),
        (even(4), even(4), [("prefill", 6)]),
        (even(3, rate=0.1), even(4), [("prefill", 6)]),
    ],
    ids=["prefill shorter", "decode shorter", "tie", "the paper looks at lengths, not rates"],
)
def test_dual_reads_the_whole_hit_on_the_side_with_the_shorter_queue(
    prefill: SideLoad, decode: SideLoad, plan: list[tuple[str, int]]
) -> None:
    assert sizes(plan_of("dual", hit_of(6), prefill, decode)) == plan


def test_a_tie_reads_on_the_side_that_is_set() -> None:
    assert shorter_side(even(2), even(2), ReadSide.DECODE) is ReadSide.DECODE
    assert sizes(plan_of("dual", hit_of(6), even(2), even(2), tie=ReadSide.DECODE)) == [("decode", 6)]
    assert sizes(plan_of("split", hit_of(5), even(), even())) == [("prefill", 3), ("decode", 2)]
    assert sizes(plan_of("split", hit_of(5), even(), even(), tie=ReadSide.DECODE)) == [
        ("prefill", 2),
        ("decode", 3),
    ]


def test_alternate_reads_on_both_sides_in_turn() -> None:
    plans = [
        sizes(plan_of("alternate", hit_of(2), even(), even(), num_planned=number)) for number in range(3)
    ]
    assert plans == [[("prefill", 2)], [("decode", 2)], [("prefill", 2)]]


@pytest.mark.parametrize(
    ("prefill", "decode", "plan"),
    [
        (even(), even(), [("prefill", 6), ("decode", 6)]),
        (even(4), even(), [("prefill", 4), ("decode", 8)]),
        (even(), even(4), [("prefill", 8), ("decode", 4)]),
        (even(rate=3), even(), [("prefill", 9), ("decode", 3)]),
        (even(3, rate=3), even(2), [("prefill", 10), ("decode", 2)]),
        (even(99), even(), [("decode", 12)]),
        (even(), even(99), [("prefill", 12)]),
    ],
    ids=["even", "prefill waits", "decode waits", "rates", "both", "all on decode", "all on prefill"],
)
def test_split_shares_by_queues_and_rates_so_that_both_finish_together(
    prefill: SideLoad, decode: SideLoad, plan: list[tuple[str, int]]
) -> None:
    assert sizes(plan_of("split", hit_of(12), prefill, decode)) == plan


def test_nothing_is_read_without_a_hit() -> None:
    for name in get_args(ReadPlanName):
        assert plan_of(name, NO_BLOCKS, even(), even()) == ()


@pytest.mark.parametrize(("queue", "rate"), [(0, 0), (0, -1), (0, math.inf), (-1, 1), (math.nan, 1)])
def test_a_side_without_a_rate_or_with_less_than_an_empty_queue_is_refused(queue: float, rate: float) -> None:
    with pytest.raises(ValueError, match="must"):
        SideLoad(queue, rate)


@given(st.integers(0, 80), st.sets(st.integers(0, 79)), LOAD, LOAD, TIES)
def test_every_block_is_in_one_range_in_order_and_dram_blocks_are_not_read(
    num_blocks: int, in_dram: set[int], prefill: SideLoad, decode: SideLoad, tie: ReadSide
) -> None:
    hit = hit_of(num_blocks)
    keys = {block.key for i, block in enumerate(hit) if i in in_dram}
    for name in get_args(ReadPlanName):
        plan = plan_of(name, hit, prefill, decode, tie=tie, in_dram=keys)
        assert tuple(block for part in plan for block in part.blocks) == hit
        assert [part.start_block for part in plan] == [
            sum(len(before.blocks) for before in plan[:number]) for number in range(len(plan))
        ]
        assert all(part.blocks for part in plan)
        for part in plan:
            assert {block.key in keys for block in part.blocks} == {part.side is ReadSide.DRAM}
        read = [part.side for part in plan if part.side is not ReadSide.DRAM]
        assert read == sorted(read, key=[ReadSide.PREFILL, ReadSide.DECODE].index)


@given(st.integers(1, 500), LOAD, LOAD, TIES)
def test_sides_that_both_read_finish_within_a_block_of_the_slower(
    num_blocks: int, prefill: SideLoad, decode: SideLoad, tie: ReadSide
) -> None:
    share = prefill_share(num_blocks, BLOCK_BYTES, prefill, decode, tie)
    prefill_s = prefill.finish_s(share * BLOCK_BYTES)
    decode_s = decode.finish_s((num_blocks - share) * BLOCK_BYTES)
    block_s = BLOCK_BYTES / min(prefill.bytes_per_s, decode.bytes_per_s)
    if 0 < share < num_blocks:
        assert abs(prefill_s - decode_s) <= block_s * (1 + 1e-9)


@given(st.integers(1, 60), LOAD, LOAD)
def test_no_other_share_finishes_sooner(num_blocks: int, prefill: SideLoad, decode: SideLoad) -> None:
    def later_s(share: int) -> float:
        on_decode = num_blocks - share
        return max(
            prefill.finish_s(share * BLOCK_BYTES) if share else 0,
            decode.finish_s(on_decode * BLOCK_BYTES) if on_decode else 0,
        )

    best = min(map(later_s, range(num_blocks + 1)))
    assert later_s(prefill_share(num_blocks, BLOCK_BYTES, prefill, decode)) <= best * (1 + 1e-9)

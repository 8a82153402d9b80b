from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling import read_plan
from engines.types import ReadRange, ReadSide
from kvstore.keys import BlockKey
from kvstore.prefix_index import IndexedBlock
from kvstore.store import BlockLocation


def hit_of(num_blocks: int) -> tuple[IndexedBlock, ...]:
    return tuple(
        IndexedBlock(BlockKey(bytes([i]) * 16), BlockLocation("segment", i * 4096, 4096, i))
        for i in range(num_blocks)
    )


def test_without_a_hit_nothing_is_read() -> None:
    assert read_plan.basic(()) == ()


@given(st.integers(1, 60))
def test_basic_reads_every_block_once_in_order_on_the_prefill_side(num_blocks: int) -> None:
    hit = hit_of(num_blocks)
    plan = read_plan.basic(hit)
    assert tuple(block for part in plan for block in part.blocks) == hit
    assert {part.side for part in plan} == {ReadSide.PREFILL}
    assert plan[0].start_block == 0


def test_blocks_are_counted_by_side() -> None:
    hit = hit_of(6)
    plan = (
        ReadRange(ReadSide.PREFILL, 0, hit[:1]),
        ReadRange(ReadSide.DECODE, 1, hit[1:4]),
        ReadRange(ReadSide.PREFILL, 4, hit[4:]),
    )
    assert read_plan.num_blocks_on(ReadSide.PREFILL, plan) == 3
    assert read_plan.num_blocks_on(ReadSide.DECODE, plan) == 3
    assert read_plan.num_blocks_on(ReadSide.DECODE, read_plan.basic(hit)) == 0

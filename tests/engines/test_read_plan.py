from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling import read_plan
from engines.types import ReadRange, ReadSide
from kvstore.indexed_blocks import NO_BLOCKS, IndexedBlock, IndexedBlocks
from kvstore.keys import BlockKey
from kvstore.store import BlockLocation


def hit_of(num_blocks: int) -> IndexedBlocks:
    return IndexedBlocks.of(
        [
            IndexedBlock(BlockKey(bytes([i]) * 16), BlockLocation("segment", i * 4096, 4096, i))
            for i in range(num_blocks)
        ]
    )


def test_without_a_hit_nothing_is_read() -> None:
    assert read_plan.ranges_of(NO_BLOCKS, 0) == ()


@given(st.integers(1, 60))
def test_all_blocks_on_the_prefill_side_are_one_range_in_order(num_blocks: int) -> None:
    hit = hit_of(num_blocks)
    plan = read_plan.ranges_of(hit, len(hit))
    assert tuple(block for part in plan for block in part.blocks) == hit
    assert {part.side for part in plan} == {ReadSide.PREFILL}
    assert plan[0].start_block == 0


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_what_lies_in_the_prefill_nodes_memory_is_not_read(kept: list[bool]) -> None:
    hit = hit_of(len(kept))
    in_dram = {block.key for block, is_kept in zip(hit, kept, strict=True) if is_kept}
    plan = read_plan.ranges_of(hit, len(hit) - len(in_dram), in_dram)
    assert tuple(block for part in plan for block in part.blocks) == hit
    assert [part.start_block for part in plan] == [hit.index(part.blocks[0]) for part in plan]
    assert set(read_plan.keys_on(ReadSide.DRAM, plan)) == in_dram
    assert not in_dram & set(read_plan.keys_on(ReadSide.PREFILL, plan))


def test_keys_are_told_by_side_and_in_order() -> None:
    hit = hit_of(6)
    keys = [block.key for block in hit]
    plan = (
        ReadRange(ReadSide.PREFILL, 0, hit[:1]),
        ReadRange(ReadSide.DECODE, 1, hit[1:4]),
        ReadRange(ReadSide.PREFILL, 4, hit[4:]),
    )
    assert read_plan.keys_on(ReadSide.PREFILL, plan) == [keys[0], keys[4], keys[5]]
    assert read_plan.keys_on(ReadSide.DECODE, plan) == keys[1:4]
    assert read_plan.keys_on(ReadSide.DECODE, read_plan.ranges_of(hit, len(hit))) == []

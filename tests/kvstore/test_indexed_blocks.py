"""Blocks in columns are the blocks."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from kvstore.indexed_blocks import NO_BLOCKS, IndexedBlock, IndexedBlocks
from kvstore.keys import KEY_BYTES, BlockKey
from kvstore.store import BlockLocation

BLOCK = st.builds(
    IndexedBlock,
    st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(BlockKey),
    st.builds(
        BlockLocation,
        segment=st.sampled_from(["w.a.0.kv", "w.a.1.kv", "w.b.0.kv"]),
        offset=st.integers(0, 2**63 - 1),
        nbytes=st.just(4096),
        checksum=st.integers(0, 2**32 - 1),
    ),
)


@given(st.lists(BLOCK, max_size=20), st.slices(20))
def test_columns_slices_and_pickles_hold_the_same_blocks(blocks: list[IndexedBlock], part: slice) -> None:
    columns = IndexedBlocks.of(blocks)
    assert list(columns) == blocks == [columns[i] for i in range(len(blocks))]
    assert columns == blocks
    assert columns == pickle.loads(pickle.dumps(columns))
    assert list(columns[part]) == blocks[part]
    assert columns[part].segment_names() == {block.location.segment for block in blocks[part]}
    assert pickle.loads(pickle.dumps(columns[part])) == blocks[part]
    assert IndexedBlocks.of(columns) is columns


def test_other_blocks_are_not_equal() -> None:
    one = IndexedBlock(BlockKey(bytes(KEY_BYTES)), BlockLocation("s", 0, 4096, 0))
    other = IndexedBlock(one.key, BlockLocation("s", 4096, 4096, 0))
    assert IndexedBlocks.of([one]) != [other]
    assert IndexedBlocks.of([one]) != [one, one]
    assert (NO_BLOCKS == (), NO_BLOCKS.record_bytes, NO_BLOCKS.segment_names()) == (True, 0, set())

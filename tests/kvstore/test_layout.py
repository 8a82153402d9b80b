import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import LayoutError
from kvstore.layout import PAGE_BYTES, BlockLayout, KVFormat, KVGroup
from tests.kvstore.kv_blocks import LAYOUTS, make_layout

layouts = st.builds(
    make_layout,
    st.integers(1, 70),
    st.lists(st.integers(1, 300), min_size=1, max_size=4).map(tuple),
    st.integers(1, 128),
)


@given(layouts)
def test_layer_blocks_lie_back_to_back_and_fill_the_full_block(layout):
    ends = [layout.layer_offset(layer) + layout.layer_block_bytes for layer in range(layout.num_layers)]
    assert [0, *ends[:-1]] == [layout.layer_offset(layer) for layer in range(layout.num_layers)]
    assert ends[-1] == layout.full_block_bytes


@given(layouts)
def test_a_slot_is_the_fewest_pages_that_hold_a_full_block(layout):
    assert layout.slot_bytes % PAGE_BYTES == 0
    assert 0 <= layout.slot_bytes - layout.full_block_bytes < PAGE_BYTES


@given(layouts, st.integers(0, 5000))
def test_tokens_of_a_context_are_spread_over_its_blocks(layout, num_tokens):
    blocks = range(layout.num_blocks(num_tokens))
    filled = [layout.tokens_in_block(block, num_tokens) for block in blocks]
    assert sum(filled) == num_tokens
    assert all(tokens == layout.block_tokens for tokens in filled[:-1])
    assert all(tokens > 0 for tokens in filled)


def test_a_token_takes_the_bytes_of_all_its_groups():
    layout = LAYOUTS["odd bytes"]
    assert (layout.token_bytes, layout.layer_block_bytes, layout.full_block_bytes) == (7, 49, 147)


@pytest.mark.parametrize("block_tokens", [0, -1, 129])
def test_a_block_size_out_of_range_is_refused_by_value(block_tokens):
    with pytest.raises(LayoutError, match=rf"1\.\.128, got {block_tokens}"):
        make_layout(1, (8,), block_tokens)


@pytest.mark.parametrize(
    ("num_layers", "groups"),
    [(0, (KVGroup("k", 8),)), (2, ()), (2, (KVGroup("k", 0),))],
    ids=["no layers", "no groups", "an empty group"],
)
def test_a_format_that_cannot_be_is_refused(num_layers, groups):
    with pytest.raises(LayoutError):
        KVFormat("float32", num_layers, groups)


def test_formats_that_read_bytes_differently_have_different_digests():
    groups = (KVGroup("k", 8), KVGroup("v", 8))
    formats = [
        KVFormat("float32", 2, groups),
        KVFormat("bfloat16", 2, groups),
        KVFormat("float32", 3, groups),
        KVFormat("float32", 2, groups[::-1]),
        KVFormat("float32", 2, (KVGroup("kv", 16),)),
        KVFormat("float32", 2, (KVGroup("k", 8, "session"), KVGroup("v", 8))),
        KVFormat("float32", 2, groups, shard_index=1, shard_count=2),
        KVFormat("float32", 2, groups, shard_index=0, shard_count=2),
    ]
    assert len({kv_format.digest() for kv_format in formats}) == len(formats)
    assert BlockLayout(formats[0], 8).format.digest() == formats[0].digest()

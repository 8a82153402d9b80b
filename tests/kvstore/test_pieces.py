"""Lists of pieces between two memories: every byte in its place, no other touched."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.pieces import LARGE_BYTES, copy_all, copy_pieces, merge_neighbours


def columns(*rows):
    return (np.array(row, np.int64) for row in rows)


@st.composite
def pieces(draw):
    """Sizes, and where the pieces lie in two memories: apart or side by side, in any order."""
    sizes = draw(st.lists(st.integers(0, 9), max_size=12))
    equal = draw(st.booleans())
    sizes = [sizes[0]] * len(sizes) if sizes and equal else sizes

    def places():
        order, gaps = draw(st.permutations(range(len(sizes)))), draw(st.sampled_from([0, 3]))
        starts, end = [0] * len(sizes), 0
        for index in order:
            starts[index], end = end, end + sizes[index] + gaps
        return starts

    return sizes, places(), places()


@given(pieces())
def test_every_piece_is_copied_to_its_place_and_nothing_else_changes(drawn):
    sizes, to, start = drawn
    source = np.random.default_rng(0).integers(1, 256, 200, np.uint8)
    destination = np.zeros(200, np.uint8)
    wanted = destination.copy()
    for nbytes, there, here in zip(sizes, to, start, strict=True):
        wanted[there : there + nbytes] = source[here : here + nbytes]
    to_offsets, from_offsets, lengths = columns(to, start, sizes)
    copy_all(destination, to_offsets, source, from_offsets, lengths)
    assert np.array_equal(destination, wanted)


@pytest.mark.parametrize(("nbytes", "num_portions"), [(1 << 20, 3), (1 << 19, 2), (8, 1)])
def test_a_list_is_copied_in_portions_between_which_one_may_stop(nbytes, num_portions):
    source, destination = np.ones(3 * nbytes, np.uint8), np.zeros(3 * nbytes, np.uint8)
    (offsets,) = columns([0, nbytes, 2 * nbytes])
    copying = copy_pieces(destination, offsets, source, offsets, np.full(3, nbytes))
    assert next(copying) == 0
    assert not destination.any()
    assert len(list(copying)) == num_portions - 1
    assert destination.all()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), max_size=12))
def test_merged_neighbours_are_the_same_bytes_in_the_same_order(drawn):
    offsets, sizes = columns([place for place, _ in drawn], [nbytes for _, nbytes in drawn])
    merged = zip(*merge_neighbours(offsets, sizes), strict=True)
    assert [byte for a, n in merged for byte in range(a, a + n)] == [
        byte for a, n in drawn for byte in range(a, a + n)
    ]


@pytest.mark.parametrize("nbytes", [LARGE_BYTES - 1, LARGE_BYTES])
@pytest.mark.parametrize(("to_gap", "from_gap"), [(0, 0), (0, 5), (5, 0), (5, 3)])
def test_large_pieces_are_copied_as_small_ones_are(nbytes, to_gap, from_gap):
    order = np.array([2, 0, 3, 1])
    to, start = order * (nbytes + to_gap), np.arange(4) * (nbytes + from_gap)
    source = np.random.default_rng(0).integers(1, 256, 4 * (nbytes + from_gap), np.uint8)
    source.flags.writeable = False
    destination = np.zeros(4 * (nbytes + to_gap), np.uint8)
    copy_all(destination, to, source, start, np.full(4, nbytes))
    for there, here in zip(to, start, strict=True):
        assert np.array_equal(destination[there : there + nbytes], source[here : here + nbytes])
        assert not destination[there + nbytes : there + nbytes + to_gap].any()

"""The bytes of requests and answers: what is packed can be read, what is not ours is refused."""

import struct
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.tcp_wire import (
    ANSWER_BYTES,
    HEADER_BYTES,
    MAX_RANGES,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_MS,
    Header,
    Kind,
    Status,
    WireError,
    pack_answer,
    pack_ranges,
    region_id,
    unpack_answer,
    unpack_ranges,
)

HEADER = Header(Kind.WRITE, 250, 3, 1 << 40, region_id("an incarnation"), 12345)
MEMORY = np.zeros(10_000, np.uint8)


def test_a_header_comes_back_as_it_was():
    assert Header.unpack(HEADER.pack()) == HEADER


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_ranges", (0, MAX_RANGES + 1, (1 << 32) - 1)),
        ("nbytes", (0, MAX_REQUEST_BYTES + 1, (1 << 64) - 1)),
        ("deadline_ms", (0, MAX_REQUEST_MS + 1)),
        ("kind", (0, 3, 255)),
    ],
)
def test_a_header_with_a_number_out_of_bounds_is_refused_and_the_number_named(field, values):
    for value in values:
        with pytest.raises(WireError, match=rf"got {value}"):
            Header.unpack(replace(HEADER, **{field: value}).pack())


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_bytes_are_no_header(data):
    with pytest.raises(WireError, match="began with"):
        Header.unpack(data)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 100)), min_size=1, max_size=20))
@example([(0, 5), (5, 5), (11, 1), (3, 2), (5, 4)])
def test_merged_ranges_name_the_same_bytes_in_the_same_order(places):
    table, num_ranges = pack_ranges(*np.array(places, np.int64).T)
    wanted = [byte for offset, nbytes in places for byte in range(offset, offset + nbytes)]
    ranges = list(zip(*(column.tolist() for column in unpack_ranges(table, len(wanted), 1000)), strict=True))
    assert [byte for offset, nbytes in ranges for byte in range(offset, offset + nbytes)] == wanted
    assert len(ranges) == num_ranges
    assert all(a + n != b for (a, n), (b, _) in pairwise(ranges))


@pytest.mark.parametrize(
    "table", [(100, 1), (99, 2), (0, 101), (1 << 63, 1 << 63), ((1 << 64) - 1, 2), (5, 0)]
)
def test_a_range_outside_the_region_is_refused(table):
    with pytest.raises(WireError, match="region of 100") as caught:
        unpack_ranges(struct.pack("!4Q", 0, 1, *table), 1 + table[1], 100)
    assert caught.value.status is Status.OUTSIDE_REGION


def test_ranges_that_do_not_add_up_are_refused():
    with pytest.raises(WireError, match="ranges of 30 bytes were announced as 31"):
        unpack_ranges(struct.pack("!4Q", 0, 10, 50, 20), 31, 100)


def test_an_answer_is_to_one_request_only():
    answer = pack_answer(Status.OUTSIDE_REGION, 7)
    assert unpack_answer(answer, 7) is Status.OUTSIDE_REGION
    with pytest.raises(WireError, match="request 7 came for 8"):
        unpack_answer(answer, 8)


@given(st.binary(min_size=ANSWER_BYTES, max_size=ANSWER_BYTES))
def test_random_bytes_are_no_answer(data):
    with pytest.raises(WireError):
        unpack_answer(data, 1)

"""What lists of pieces become as work requests. Needs no RDMA device: memory is read as the NIC would."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.verbs_requests import (
    MAX_REQUEST_BYTES,
    PIECE,
    REQUEST,
    Opcode,
    Pieces,
    RemoteMemory,
    RequestShape,
    build_requests,
)

SHAPE = RequestShape(max_pieces=4, batch=3)
REMOTE = RemoteMemory(address=1 << 40, rkey=99)
LKEY = 7


def pieces(local, remote, sizes, lkeys=None):
    columns = [np.array(column, np.int64) for column in (local, lkeys or [LKEY] * len(sizes), remote, sizes)]
    return Pieces(*columns)


def posted(requests):
    """Every request that the NIC would find, following the pointers from the first of each batch."""
    found = []
    for batch in requests.batches():
        address = batch.__array_interface__["data"][0]
        while address:
            request = np.frombuffer(ctypes.string_at(address, REQUEST.itemsize), REQUEST)[0]
            local = np.frombuffer(
                ctypes.string_at(int(request["sg_list"]), int(request["num_sge"]) * PIECE.itemsize), PIECE
            )
            found.append((request, local))
            address = int(request["next"])
    return found


def bytes_moved(requests):
    """Local address of every remote byte (offset in the region) that is moved."""
    moved = {}
    for request, local in posted(requests):
        remote = int(request["remote_address"]) - REMOTE.address
        for piece in local:
            for i in range(int(piece["nbytes"])):
                assert remote not in moved
                moved[remote] = (int(piece["lkey"]), int(piece["address"]) + i)
                remote += 1
    return moved


def build(columns, shape=SHAPE, opcode=Opcode.WRITE):
    return build_requests(columns, opcode, REMOTE, shape)


def test_the_structures_are_as_large_as_those_of_libibverbs():
    assert (REQUEST.itemsize, PIECE.itemsize) == (128, 16)


def test_neighbours_at_both_ends_are_one_request():
    requests = build(pieces([0, 10, 30], [100, 110, 130], [10, 20, 5]))
    assert len(requests) == len(requests.pieces) == 1
    assert requests.pieces["nbytes"][0] == 35


def test_neighbours_at_the_far_end_alone_are_gathered_into_one_request():
    requests = build(pieces([0, 50, 90], [100, 110, 120], [10, 10, 10]))
    assert (len(requests), len(requests.pieces)) == (1, 3)


def test_neighbours_at_this_end_alone_are_requests_of_their_own():
    assert len(build(pieces([0, 10, 20], [100, 300, 200], [10, 10, 10]))) == 3


def test_neighbours_in_memories_with_different_keys_stay_pieces_apart():
    requests = build(pieces([0, 10], [100, 110], [10, 10], lkeys=[1, 2]))
    assert [*requests.pieces["lkey"]] == [1, 2]


def test_a_request_gathers_no_more_pieces_than_the_queue_pair_takes():
    places = np.arange(10)
    requests = build(pieces(places * 20, places * 10, [10] * 10))
    assert [*requests.requests["num_sge"]] == [4, 4, 2]


def test_a_large_piece_becomes_requests_of_a_limited_size():
    nbytes = 2 * MAX_REQUEST_BYTES + 5
    requests = build(pieces([1000], [64], [nbytes]))
    assert [*requests.pieces["nbytes"]] == [MAX_REQUEST_BYTES, MAX_REQUEST_BYTES, 5]
    assert requests.requests["remote_address"][2] == REMOTE.address + 64 + 2 * MAX_REQUEST_BYTES


def test_what_is_gathered_is_at_most_two_full_requests_long():
    places, nbytes = np.arange(40), MAX_REQUEST_BYTES // 3
    requests = build(pieces(places * 2 * nbytes, places * nbytes, [nbytes] * 40), RequestShape(30, 3))
    sizes = [sum(local["nbytes"]) for _, local in posted(requests)]
    assert sum(sizes) == 40 * nbytes
    assert max(sizes) <= 2 * MAX_REQUEST_BYTES


@pytest.mark.parametrize("num_requests", [1, 2, 3, 4, 7])
def test_the_last_request_of_each_batch_alone_tells_of_its_end(num_requests):
    places = np.arange(num_requests)
    requests = build(pieces(places * 20, places * 50, [10] * num_requests))
    told = [bool(request["send_flags"]) for request, _ in posted(requests)]
    assert told == [i % 3 == 2 or i == num_requests - 1 for i in range(num_requests)]
    assert [int(request["wr_id"]) for request, _ in posted(requests)] == [*range(num_requests)]


def test_requests_say_what_to_do_and_by_which_key():
    ((request, _),) = posted(build(pieces([0], [5], [8]), opcode=Opcode.READ))
    assert (request["opcode"], request["rkey"]) == (Opcode.READ, REMOTE.rkey)


def test_nothing_becomes_no_request():
    assert len(build(pieces([], [], []))) == 0
    assert len(build(pieces([3, 4], [5, 6], [0, 0]))) == 0


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans()), max_size=30),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_every_byte_is_moved_once_between_its_own_two_places(moves, max_pieces, batch):
    local, remote, columns = 0, 0, []
    for size, gap, other_key in moves:
        local, remote = local + gap % 2, remote + gap // 2
        columns.append((local, remote, size, 1 + other_key))
        local, remote = local + size, remote + size
    rows = [list(column) for column in zip(*columns, strict=True)] or [[], [], [], []]
    requests = build(pieces(rows[0], rows[1], rows[2], rows[3]), RequestShape(max_pieces, batch))
    wanted = {there + i: (lkey, here + i) for here, there, size, lkey in columns for i in range(size)}
    assert bytes_moved(requests) == wanted
    assert all(1 <= request["num_sge"] <= max_pieces for request, _ in posted(requests))

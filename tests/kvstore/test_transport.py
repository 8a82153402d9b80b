"""The contract of a Transport and the server it reaches, over every implementation."""

import math
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest

from kvstore.checksum import checksum
from kvstore.errors import TransferError
from kvstore.open_transport import open_region_server, open_transport
from kvstore.staging import StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.transport import TransferList
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, random_block
from tests.kvstore.owner_process import NIXL, SHM, TCP, VERBS, OwnerProcess, skip_without_nixl

KV = TrafficClass.KV


@pytest.fixture(
    params=[SHM, TCP, NIXL, pytest.param(VERBS, marks=pytest.mark.rdma)], ids=lambda spec: spec.config.kind
)
def spec(request):
    if request.param is NIXL:
        skip_without_nixl()
    return request.param


@pytest.fixture
def transport(spec):
    with closing(open_transport(spec)) as transport:
        yield transport


@pytest.fixture
def server(spec):
    with closing(open_region_server(spec)) as server:
        yield server


@pytest.fixture
def peer():
    """Memory of this process, reached as a peer's."""
    with closing(StagingMemory.create("peer", SMALL, num_slots=4)) as peer:
        yield peer


@pytest.fixture
def region(server, peer):
    return server.register(peer)


@pytest.fixture
def owner(spec):
    with OwnerProcess(SMALL, 3, spec) as owner:
        yield owner


def empty(nbytes):
    return np.zeros(nbytes, np.uint8)


def test_bytes_written_to_another_process_arrive_there_and_can_be_read_back(transport, owner):
    block, back = random_block(SMALL, seed=1), empty(SMALL.slot_bytes)
    offset = 2 * SMALL.slot_bytes
    transport.write(owner.region, [TransferList.piece(block, offset)], KV, PLENTY_S)
    assert owner.slot_checksum(2) == checksum(block)
    transport.read(owner.region, [TransferList.piece(back, offset)], KV, PLENTY_S)
    assert np.array_equal(back, block)


def test_a_list_moves_each_piece_to_its_own_place_and_touches_nothing_else(transport, peer, region):
    pieces = [(0, 1, 0, 3), (1, 2, 4, 5), (3, 3, 15, 16)]
    for i, (slot, layer, start, stop) in enumerate(pieces):
        ops = [
            TransferList.piece(
                empty((stop - start) * SMALL.token_bytes) + i + 1, peer.offset(slot, layer, start)
            )
        ]
        transport.write(region, ops, KV, PLENTY_S)
    for i, piece in enumerate(pieces):
        assert set(peer.tokens(*piece)) == {i + 1}
        peer.tokens(*piece)[:] = 0
    assert not peer.buffer.any()


def test_a_batch_of_reads_fills_every_local_end(transport, peer, region):
    peer.buffer[:] = np.random.default_rng(2).integers(0, 256, len(peer.buffer), dtype=np.uint8)
    ops = [TransferList.piece(empty(SMALL.slot_bytes), peer.offset(slot)) for slot in (3, 0, 2)]
    transport.read(region, ops, KV, PLENTY_S)
    for op, slot in zip(ops, (3, 0, 2), strict=True):
        assert np.array_equal(op.memory, peer.slot(slot))


@pytest.mark.parametrize("sizes", [(1, 7, 0, 4096, 3), (1,) * 3000], ids=["uneven", "many"])
@pytest.mark.parametrize("gap", [0, 1])
def test_neighbours_and_pieces_apart_come_back_as_they_were_written(transport, peer, region, sizes, gap):
    source = np.random.default_rng(3).integers(0, 256, sum(sizes), dtype=np.uint8)
    back, ends = empty(len(source)), np.cumsum(sizes)
    starts, shifts = ends - sizes, np.arange(len(sizes)) * gap
    back_places = len(source) - ends  # the last piece comes first
    pieces = TransferList(source, starts, starts + shifts, np.array(sizes))
    transport.write(region, [pieces], KV, PLENTY_S)
    assert np.count_nonzero(peer.buffer) == np.count_nonzero(source)
    transport.read(region, [replace(pieces, memory=back)], KV, PLENTY_S)
    assert np.array_equal(back, source)
    back[:] = 0
    transport.read(region, [replace(pieces, memory=back, local_offsets=back_places)], KV, PLENTY_S)
    for place, start, size in zip(back_places, starts, sizes, strict=True):
        assert np.array_equal(back[place : place + size], source[start : start + size])


@pytest.mark.parametrize("nbytes", [1, 672, 40_000, 300_000])
def test_equal_pieces_of_several_memories_go_to_their_places_in_one_call(transport, nbytes, spec):
    random, num = np.random.default_rng(6), 7
    with (
        closing(StagingMemory.create("peer", SMALL, -(-4 * num * nbytes // SMALL.slot_bytes))) as peer,
        closing(open_region_server(spec)) as server,
    ):
        region, ours = server.register(peer), [random.integers(1, 256, (num, nbytes), np.uint8) for _ in "ab"]
        places = random.permutation(4 * num)[: 2 * num].reshape(2, num) * nbytes
        rows = np.arange(num) * nbytes
        lists = [
            TransferList.equal(one.reshape(-1), rows, there, nbytes)
            for one, there in zip(ours, places, strict=True)
        ]
        assert sum(moves.nbytes for moves in lists) == 2 * num * nbytes
        transport.write(region, lists, KV, PLENTY_S)
        wanted = np.zeros_like(peer.buffer)
        for one, there in zip(ours, places, strict=True):
            for piece, start in zip(one, there, strict=True):
                wanted[start : start + nbytes] = piece
        assert np.array_equal(peer.buffer, wanted)
        backs = [replace(moves, memory=np.zeros_like(moves.memory)) for moves in lists]
        transport.read(region, backs, KV, PLENTY_S)
        for one, moves in zip(ours, backs, strict=True):
            assert np.array_equal(one.reshape(-1), moves.memory)


def test_an_empty_list_is_fine(transport, region):
    transport.write(region, [], KV, PLENTY_S)
    transport.read(region, [TransferList.piece(empty(0), 8)], KV, PLENTY_S)


def test_a_caller_may_have_all_the_time_in_the_world(transport, peer, region):
    transport.write(region, [TransferList.piece(empty(8) + 1, 0)], KV, math.inf)
    assert peer.buffer[:8].all()


@pytest.mark.parametrize("offset", [-1, 4 * SMALL.slot_bytes - 9, 1 << 62, (1 << 63) - 5])
@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_move_outside_the_region_is_refused_and_no_byte_of_the_list_moves(
    transport, peer, region, verb, offset
):
    ops = [TransferList.piece(empty(10) + 1, 0), TransferList.piece(empty(10) + 1, offset)]
    with pytest.raises(TransferError, match=rf"\[{offset}, {offset + 10}\) are outside.*{region.nbytes}"):
        getattr(transport, verb)(region, ops, KV, PLENTY_S)
    assert not peer.buffer.any()
    assert all(op.memory.all() for op in ops)


def test_the_last_byte_of_the_region_is_inside(transport, peer, region):
    transport.write(region, [TransferList.piece(empty(1) + 8, region.nbytes - 1)], KV, PLENTY_S)
    assert peer.buffer[-1] == 8


def test_a_peer_that_was_killed_cannot_be_reached(transport, owner):
    owner.kill()
    with pytest.raises(TransferError, match="is gone"):
        transport.read(owner.region, [TransferList.piece(empty(8), 0)], KV, PLENTY_S)


def test_a_peer_that_was_killed_after_a_transfer_is_noticed(transport, owner):
    ops = [TransferList.piece(empty(8), 0)]
    transport.write(owner.region, ops, KV, PLENTY_S)
    owner.kill()
    for verb in (transport.read, transport.write):
        with pytest.raises(TransferError, match="is gone"):
            verb(owner.region, ops, KV, PLENTY_S)


def test_a_restarted_peer_is_another_peer(transport, region, spec):
    with (
        closing(StagingMemory.create("peer", SMALL, num_slots=4)) as restarted,
        closing(open_region_server(spec)) as server,
    ):
        stale = replace(region, address=server.register(restarted).address)
        with pytest.raises(TransferError, match="another incarnation"):
            transport.write(stale, [TransferList.piece(empty(8) + 1, 0)], KV, PLENTY_S)
        assert not restarted.buffer.any()


def test_an_address_of_another_transport_is_refused(transport, region):
    strange = replace(region, address="smoke:signals")
    with pytest.raises(TransferError, match="smoke:signals"):
        transport.read(strange, [TransferList.piece(empty(8), 0)], KV, PLENTY_S)


def test_a_deadline_that_is_over_stops_the_list(transport, region):
    ops = [TransferList.piece(empty(8) + 1, 0)]
    with pytest.raises(TransferError, match=r"1 moves with peer .* 0.0 s"):
        transport.write(region, ops, KV, 0.0)


def test_many_threads_move_their_own_bytes_at_once_in_both_classes(transport, peer, region):
    rounds, errors = 20, []

    def work(thread, traffic_class):
        mine = peer.offset(thread % 4) + (thread // 4) * (SMALL.slot_bytes // 2)
        try:
            for i in range(rounds):
                ops = [
                    TransferList.piece(empty(300) + thread * rounds + i, mine),
                    TransferList.piece(empty(9), mine + 400),
                ]
                transport.write(region, ops, traffic_class, PLENTY_S)
                back = empty(300)
                transport.read(region, [TransferList.piece(back, mine)], traffic_class, PLENTY_S)
                assert set(back) == {thread * rounds + i}
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=[thread, traffic_class])
        for thread, traffic_class in zip(range(8), [*TrafficClass] * 4, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PLENTY_S)
        assert not thread.is_alive()
    assert not errors


def test_a_closed_transport_moves_nothing(transport, region):
    transport.close()
    transport.close()
    with pytest.raises(TransferError, match="closed"):
        transport.read(region, [TransferList.piece(empty(8), 0)], KV, PLENTY_S)


def test_a_stopped_peer_costs_no_more_than_the_deadline(transport, owner):
    ops = [TransferList.piece(empty(8), 0)]
    transport.read(owner.region, ops, KV, PLENTY_S)
    owner.stop()
    began_s = time.monotonic()
    with suppress(TransferError):  # memory that is mapped here needs no help of its owner
        transport.read(owner.region, ops, KV, 0.3)
    assert time.monotonic() - began_s < PLENTY_S / 4
    owner.go_on()
    transport.read(owner.region, ops, KV, PLENTY_S)

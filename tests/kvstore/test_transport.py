"""The contract of a Transport, over every implementation."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from kvstore.checksum import checksum
from kvstore.errors import TransferError
from kvstore.open_store import open_transport
from kvstore.staging import StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.transport import TransferOp
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, random_block
from tests.kvstore.owner_process import OwnerProcess

KV = TrafficClass.KV


@pytest.fixture(params=["shm"])
def transport(request):
    with closing(open_transport(request.param)) as transport:
        yield transport


@pytest.fixture
def peer():
    """Memory of this process, reached as a peer's."""
    with closing(StagingMemory.create("peer", SMALL, num_slots=4)) as peer:
        yield peer


@pytest.fixture
def owner():
    with OwnerProcess(SMALL, num_slots=3) as owner:
        yield owner


def empty(nbytes):
    return np.zeros(nbytes, np.uint8)


def test_bytes_written_to_another_process_arrive_there_and_can_be_read_back(transport, owner):
    block, back = random_block(SMALL, seed=1), empty(SMALL.slot_bytes)
    region, offset = owner.handle.region(), 2 * SMALL.slot_bytes
    transport.write(region, [TransferOp(block, offset)], KV, PLENTY_S)
    assert owner.slot_checksum(2) == checksum(block)
    transport.read(region, [TransferOp(back, offset)], KV, PLENTY_S)
    assert np.array_equal(back, block)


def test_a_list_moves_each_piece_to_its_own_place_and_touches_nothing_else(transport, peer):
    pieces = [(0, 1, 0, 3), (1, 2, 4, 5), (3, 3, 15, 16)]
    for i, (slot, layer, start, stop) in enumerate(pieces):
        ops = [TransferOp(empty((stop - start) * SMALL.token_bytes) + i + 1, peer.offset(slot, layer, start))]
        transport.write(peer.handle.region(), ops, KV, PLENTY_S)
    for i, piece in enumerate(pieces):
        assert set(peer.tokens(*piece)) == {i + 1}
        peer.tokens(*piece)[:] = 0
    assert not peer.buffer.any()


def test_a_batch_of_reads_fills_every_local_end(transport, peer):
    peer.buffer[:] = np.random.default_rng(2).integers(0, 256, len(peer.buffer), dtype=np.uint8)
    ops = [TransferOp(empty(SMALL.slot_bytes), peer.offset(slot)) for slot in (3, 0, 2)]
    transport.read(peer.handle.region(), ops, KV, PLENTY_S)
    for op, slot in zip(ops, (3, 0, 2), strict=True):
        assert np.array_equal(op.local, peer.slot(slot))


def test_an_empty_list_is_fine(transport, peer):
    transport.write(peer.handle.region(), [], KV, PLENTY_S)


@pytest.mark.parametrize("offset", [-1, 4 * SMALL.slot_bytes - 9, 1 << 62])
@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_move_outside_the_region_is_refused_and_no_byte_of_the_list_moves(transport, peer, verb, offset):
    ops = [TransferOp(empty(10) + 1, 0), TransferOp(empty(10) + 1, offset)]
    with pytest.raises(
        TransferError, match=rf"\[{offset}, {offset + 10}\) are outside.*{peer.handle.nbytes}"
    ):
        getattr(transport, verb)(peer.handle.region(), ops, KV, PLENTY_S)
    assert not peer.buffer.any()
    assert all(op.local.all() for op in ops)


def test_the_last_byte_of_the_region_is_inside(transport, peer):
    transport.write(peer.handle.region(), [TransferOp(empty(1) + 8, peer.handle.nbytes - 1)], KV, PLENTY_S)
    assert peer.buffer[-1] == 8


def test_a_peer_that_was_killed_cannot_be_reached(transport, owner):
    owner.kill()
    with pytest.raises(TransferError, match="is gone"):
        transport.read(owner.handle.region(), [TransferOp(empty(8), 0)], KV, PLENTY_S)


def test_a_peer_that_was_killed_after_a_transfer_is_noticed(transport, owner):
    ops = [TransferOp(empty(8), 0)]
    transport.write(owner.handle.region(), ops, KV, PLENTY_S)
    owner.kill()
    for verb in (transport.read, transport.write):
        with pytest.raises(TransferError, match="is gone"):
            verb(owner.handle.region(), ops, KV, PLENTY_S)


def test_a_restarted_peer_is_another_peer(transport, peer):
    with closing(StagingMemory.create("peer", SMALL, num_slots=4)) as restarted:
        stale = replace(peer.handle.region(), address=restarted.handle.region().address)
        with pytest.raises(TransferError, match="another incarnation"):
            transport.write(stale, [TransferOp(empty(8) + 1, 0)], KV, PLENTY_S)
        assert not restarted.buffer.any()


def test_a_deadline_that_is_over_stops_the_list(transport, peer):
    ops = [TransferOp(empty(8) + 1, 0)]
    with pytest.raises(TransferError, match=r"0 of 1 moves with peer .* 0.0 s"):
        transport.write(peer.handle.region(), ops, KV, 0.0)


def test_memory_of_dead_peers_does_not_pile_up(transport, peer):
    with OwnerProcess(SMALL, num_slots=3) as owner:
        transport.write(owner.handle.region(), [TransferOp(empty(8), 0)], KV, PLENTY_S)
        owner.kill()
        assert owner.num_mappings() == 1
        transport.write(peer.handle.region(), [TransferOp(empty(8), 0)], KV, PLENTY_S)
        assert owner.num_mappings() == 0


def test_a_closed_transport_moves_nothing(transport, peer):
    transport.close()
    transport.close()
    with pytest.raises(TransferError, match="closed"):
        transport.read(peer.handle.region(), [TransferOp(empty(8), 0)], KV, PLENTY_S)

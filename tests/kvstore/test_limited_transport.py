"""Transfers between nodes whose compute NICs have rates."""

from __future__ import annotations

from contextlib import ExitStack, closing

import numpy as np
import pytest

from kvstore.errors import TransferError
from kvstore.limited_transport import LimitedTransport
from kvstore.limiter import NodeLimiter
from kvstore.shm_transport import SharedMemoryTransport
from kvstore.staging import StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.transport import TransferList
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, random_block

KV, MODEL = TrafficClass.KV, TrafficClass.MODEL


@pytest.fixture
def nics():
    """Of the own node and of the peer."""
    with ExitStack() as stack:
        limiters = [
            NodeLimiter.create(
                name, snic_bytes_per_s=None, cnic_bytes_per_s=1e9, num_cnics=1, traffic_classes=True
            )
            for name in ("own", "peer")
        ]
        for limiter in limiters:
            stack.callback(limiter.close)
        yield [limiter.cnics[0] for limiter in limiters]


@pytest.fixture
def peer():
    with closing(StagingMemory.create("peer", SMALL, num_slots=2)) as peer:
        yield peer


@pytest.fixture
def transport(nics):
    own, theirs = nics
    with closing(LimitedTransport(SharedMemoryTransport(), own, {"peer": theirs})) as transport:
        yield transport


def charged(nics, traffic_class=KV):
    """Own in, own out, peer's in, peer's out."""
    return [lane.use(traffic_class).nbytes for nic in nics for lane in (nic.inbound, nic.outbound)]


def test_bytes_arrive_and_both_ends_are_charged_in_the_direction_they_went(transport, peer, nics):
    block, back = random_block(SMALL, 1), np.zeros(SMALL.slot_bytes, np.uint8)
    region, nbytes = peer.handle.region(), SMALL.slot_bytes
    transport.write(region, [TransferList.piece(block, 0)], KV, PLENTY_S)
    assert charged(nics) == [0, nbytes, nbytes, 0]
    transport.read(region, [TransferList.piece(back, 0)], MODEL, PLENTY_S)
    assert np.array_equal(back, block)
    assert charged(nics, MODEL) == [nbytes, 0, 0, nbytes]


def test_what_the_nics_would_carry_too_late_has_failed(transport, peer, nics):
    nics[1].set_rate(1000)
    lists = [TransferList.piece(random_block(SMALL, 1), 0)]
    with pytest.raises(TransferError, match="the compute NICs would have carried 0 of"):
        transport.write(peer.handle.region(), lists, KV, 0.05)


def test_a_move_that_fails_costs_nothing(transport, peer, nics):
    lists = [TransferList.piece(random_block(SMALL, 1), peer.handle.nbytes)]
    with pytest.raises(TransferError, match="outside"):
        transport.write(peer.handle.region(), lists, KV, PLENTY_S)
    assert charged(nics) == [0, 0, 0, 0]

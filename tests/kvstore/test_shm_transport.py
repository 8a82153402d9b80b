"""What only the shared-memory transport does: it maps its peers' memory, and lets go of it."""

from contextlib import closing

import numpy as np
import pytest

from kvstore.shm_transport import SharedMemoryTransport
from kvstore.staging import StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.transport import TransferList
from tests.kvstore.kv_blocks import PLENTY_S, SMALL
from tests.kvstore.owner_process import OwnerProcess

OPS = [TransferList.piece(np.zeros(8, np.uint8), 0)]


@pytest.fixture
def transport():
    with closing(SharedMemoryTransport()) as transport:
        yield transport


def test_memory_of_dead_peers_does_not_pile_up(transport):
    with (
        OwnerProcess(SMALL, num_slots=3) as owner,
        closing(StagingMemory.create("peer", SMALL, num_slots=4)) as peer,
    ):
        transport.write(owner.region, OPS, TrafficClass.KV, PLENTY_S)
        owner.kill()
        assert owner.num_mappings() == 1
        transport.write(peer.handle.region(), OPS, TrafficClass.KV, PLENTY_S)
        assert owner.num_mappings() == 0

"""What is NIXL's own, beyond the contract of a Transport: what becomes of a call that it cannot stop."""

import os
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from kvstore.errors import LateWrite, TransferError, TransportUnavailable
from kvstore.job_token import JobToken
from kvstore.open_transport import TransportSpec, open_region_server, open_transport
from kvstore.staging import StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.transport import TransferList
from kvstore.transport_config import TransportConfig
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, make_layout
from tests.kvstore.owner_process import NIXL, OwnerProcess, skip_without_nixl

KV = TrafficClass.KV
LARGE = make_layout(8, (4096,), 128)
PIECE_BYTES = 4096
LISTENING = "0A"


@pytest.fixture
def transport():
    skip_without_nixl()
    with closing(open_transport(NIXL)) as transport:
        yield transport


@pytest.fixture
def over_tcp(monkeypatch):
    """Within a host UCX copies from memory to memory itself, without the peer; not so over TCP."""
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_call_to_a_stopped_peer_ends_in_time_and_what_comes_later_reaches_nobody(over_tcp, transport, verb):
    """A place that may still be written is named by the error's class; the peer lives, and serves again."""
    memory = np.full(LARGE.slot_bytes, 1, np.uint8)
    places = np.arange(len(memory) // PIECE_BYTES) * PIECE_BYTES
    lists = [TransferList.equal(memory, places, places, PIECE_BYTES)]
    with OwnerProcess(LARGE, 1, NIXL) as owner:
        move = getattr(transport, verb)
        move(owner.region, lists, KV, PLENTY_S)
        owner.stop()
        began_s = time.monotonic()
        with pytest.raises(TransferError, match=f"{len(places)} moves with owner .* 0.3 s") as raised:
            move(owner.region, lists, KV, 0.3)
        assert time.monotonic() - began_s < PLENTY_S / 4
        assert isinstance(raised.value, LateWrite) == (verb == "write")
        memory[:] = 2
        owner.go_on()
        end_s = time.monotonic() + PLENTY_S
        while transport.num_unfinished and time.monotonic() < end_s:
            time.sleep(0.01)
        assert not transport.num_unfinished
        assert set(memory) == {2}
        move(owner.region, lists, KV, PLENTY_S)


def test_who_does_not_know_the_token_learns_of_no_agent():
    skip_without_nixl()
    stranger = TransportSpec(NIXL.config, JobToken.draw())
    with (
        closing(StagingMemory.create("peer", SMALL, 1)) as peer,
        closing(open_region_server(NIXL)) as server,
        closing(open_transport(stranger)) as transport,
        pytest.raises(TransferError, match="did not let this process in"),
    ):
        transport.read(server.register(peer), [TransferList.piece(np.zeros(8, np.uint8), 0)], KV, PLENTY_S)


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc")
def test_ucx_listens_only_at_the_interface_that_is_named():
    skip_without_nixl()
    with closing(open_region_server(NIXL)):
        listening = listening_addresses()
    assert listening
    assert all(address.endswith("7F") for address in listening), listening


def listening_addresses():
    """Of this process, as the kernel writes them: the bytes of an IPv4 address from the last to the first."""
    ours = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            ours.add(os.readlink(f"/proc/self/fd/{fd}"))
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in ours}


def test_a_device_that_ucx_does_not_know_is_named():
    skip_without_nixl()
    spec = TransportSpec(TransportConfig("nixl", "127.0.0.1", "no_such_nic:1", None, None), NIXL.token)
    with pytest.raises(TransportUnavailable, match="no_such_nic:1"):
        open_region_server(spec)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvstore.nixl_transport", None)
    with pytest.raises(TransportUnavailable, match=r"pip install 'dualpath-rollout\[nixl\]'"):
        open_transport(NIXL)

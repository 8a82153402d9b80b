"""What the verbs transport does when an end, a key or the network fails, and how its packets are marked."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from kvstore.errors import StagingError, TransferError
from kvstore.job_token import JobToken
from kvstore.staging import StagingMemory
from kvstore.traffic import CLASS_TABLE, TrafficClass
from kvstore.transport import TransferList
from kvstore.verbs_devices import Link, choose_port, choose_rails, find_ports
from kvstore.verbs_requests import RemoteMemory
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, random_block
from tests.kvstore.owner_process import TOKEN, VERBS, OwnerProcess

pytestmark = pytest.mark.rdma

KV = TrafficClass.KV
SHORT_S = 0.4
NOBODYS_ADDRESS = 1 << 46
"""No memory is mapped there."""


class Recording:
    """A QueuePair that the test finds again: those of the server and of the client, in turn."""

    def __init__(self, module, monkeypatch) -> None:
        self.pairs = []
        made = module.QueuePair

        def make(device):
            self.pairs.append(made(device))
            return self.pairs[-1]

        monkeypatch.setattr(module, "QueuePair", make)

    @property
    def last(self):
        return self.pairs[-1]


@pytest.fixture
def choice():
    return choose_port(find_ports(), None, None, None)


@pytest.fixture
def far_choice():
    """Another device than `choice`, if there is one."""
    found = find_ports()
    return choose_port(found, [port.device for port in found.ports if port.is_active][-1], None, None)


@pytest.fixture
def transport(choice):
    from kvstore.verbs_transport import VerbsTransport

    with closing(VerbsTransport(TOKEN, choice)) as transport:
        yield transport


@pytest.fixture
def server(far_choice):
    from kvstore.verbs_server import VerbsServer

    with closing(VerbsServer(TOKEN, [far_choice])) as server:
        yield server


@pytest.fixture
def peer():
    with closing(StagingMemory.create("peer", SMALL, num_slots=4)) as peer:
        yield peer


@pytest.fixture
def region(server, peer):
    return server.register(peer)


@pytest.fixture
def servers_pairs(monkeypatch):
    from kvstore import verbs_server

    return Recording(verbs_server, monkeypatch)


@pytest.fixture
def clients_pairs(monkeypatch):
    from kvstore import verbs_connection

    return Recording(verbs_connection, monkeypatch)


def ops(nbytes: int = 8, offset: int = 0, value: int = 1) -> list[TransferList]:
    return [TransferList.piece(np.full(nbytes, value, np.uint8), offset)]


def idle_connection(transport):
    (connection,) = [each for lane in transport._connections._lanes.values() for each in lane.idle]
    return connection


def in_thread(work: Callable[[], None]) -> tuple[threading.Thread, list[str]]:
    """Begin `work`, which is to fail, and collect what it says then."""
    said: list[str] = []

    def run() -> None:
        try:
            work()
            said.append("it was done")
        except TransferError as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, said


# -- between two devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("traffic_class", list(TrafficClass))
def test_bytes_go_from_one_device_to_another_and_back(transport, region, peer, traffic_class):
    source = np.random.default_rng(1).integers(0, 256, SMALL.slot_bytes, np.uint8)
    transport.write(region, [TransferList.piece(source, 64)], traffic_class, PLENTY_S)
    assert np.array_equal(peer.buffer[64 : 64 + len(source)], source)
    back = np.zeros_like(source)
    transport.read(region, [TransferList.piece(back, 64)], traffic_class, PLENTY_S)
    assert np.array_equal(back, source)


@pytest.mark.parametrize("rail", [0, 1, 2])
def test_an_engine_reaches_the_rail_of_its_number_counted_round(rail, peer, monkeypatch):
    from kvstore import verbs_server
    from kvstore.verbs_transport import VerbsTransport

    rails = choose_rails(find_ports(), None, None, None)
    recording = Recording(verbs_server, monkeypatch)
    with (
        closing(verbs_server.VerbsServer(TOKEN, rails)) as server,
        closing(VerbsTransport(TOKEN, rails[rail % len(rails)], rail=rail)) as transport,
    ):
        block = random_block(SMALL, seed=rail)
        transport.write(server.register(peer), [TransferList.piece(block, 0)], KV, PLENTY_S)
        assert recording.last._device.choice == rails[rail % len(rails)]
    assert np.array_equal(peer.slot(0), block)


def test_the_devices_of_this_machine_are_listed(choice):
    found = find_ports()
    assert found.why_none is None
    assert choice.port in found.ports
    assert choice.gid in choice.port.gids
    assert 256 <= choice.port.mtu_bytes <= 4096


def test_a_stranger_gets_no_queue_pair(choice, region, peer, servers_pairs):
    from kvstore.verbs_transport import VerbsTransport

    token = JobToken(b"the token of quite another job")
    with closing(VerbsTransport(token, choice)) as stranger, pytest.raises(TransferError, match="token"):
        stranger.write(region, ops(), KV, PLENTY_S)
    assert not servers_pairs.pairs
    assert not peer.buffer.any()


# -- traffic classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("traffic_class", list(TrafficClass))
def test_queue_pairs_are_marked_with_their_class_and_answer_reads_at_both_ends(
    transport, region, servers_pairs, clients_pairs, traffic_class
):
    from kvstore.verbs_library import enums

    transport.read(region, ops(), traffic_class, PLENTY_S)
    wanted = CLASS_TABLE[traffic_class]
    for pair in (clients_pairs.last, servers_pairs.last):
        if pair._device.choice.port.link is Link.ETHERNET:
            assert pair.path().traffic_class == wanted.dscp << 2
        else:
            assert pair.path().service_level == wanted.service_level
        attributes, _ = pair._qp.query(enums.IBV_QP_MAX_QP_RD_ATOMIC | enums.IBV_QP_MAX_DEST_RD_ATOMIC)
        assert min(attributes.max_rd_atomic, attributes.max_dest_rd_atomic) >= 1


def test_a_server_with_another_class_table_is_refused_and_both_values_are_named(transport, far_choice, peer):
    from kvstore.verbs_server import VerbsServer

    classes = {c: replace(settings, dscp=33, service_level=5) for c, settings in CLASS_TABLE.items()}
    with closing(VerbsServer(TOKEN, [far_choice], classes=classes)) as server:
        region = server.register(peer)
        with pytest.raises(
            TransferError, match=r"class kv has (traffic class 132|service level 5) at peer, not"
        ):
            transport.write(region, ops(), KV, PLENTY_S)
    assert not peer.buffer.any()


def test_a_device_that_ignores_the_class_is_noticed(transport, region, monkeypatch):
    from kvstore.verbs_handshake import PathClass
    from kvstore.verbs_queue_pair import QueuePair

    monkeypatch.setattr(QueuePair, "path", lambda self: PathClass(7, 7))
    with pytest.raises(TransferError, match=r"class kv has (traffic class|service level) 7 at this end, not"):
        transport.write(region, ops(), KV, PLENTY_S)


# -- failures --------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused_and_the_connection_is_made_anew(transport, region, peer, clients_pairs):
    transport.write(region, ops(value=5), KV, PLENTY_S)
    connection = idle_connection(transport)
    connection._memory = replace(connection._memory, rkey=connection._memory.rkey ^ 0x5555)
    with pytest.raises(TransferError, match=r"1 moves with peer failed: REM_ACCESS_ERR"):
        transport.write(region, ops(offset=100), KV, PLENTY_S)
    assert np.count_nonzero(peer.buffer) == 8
    transport.write(region, ops(offset=200, value=6), KV, PLENTY_S)
    assert idle_connection(transport) is not connection
    assert len({pair.end.first_psn for pair in clients_pairs.pairs if not pair._closed}) == 1
    assert peer.buffer[200] == 6


def test_what_lies_outside_the_memory_is_refused_there_too(transport, region, peer):
    lying = replace(region, nbytes=1 << 40)
    for verb in (transport.write, transport.read):
        with pytest.raises(TransferError, match="REM_ACCESS_ERR"):
            verb(lying, ops(offset=region.nbytes + (1 << 30)), KV, PLENTY_S)


def test_a_peer_whose_nic_acknowledges_nothing_is_given_up(transport, region, servers_pairs, monkeypatch):
    from kvstore import verbs_queue_pair

    monkeypatch.setattr(verbs_queue_pair, "ACK_TIMEOUT", 8)
    transport.write(region, ops(), KV, PLENTY_S)
    servers_pairs.last.close()
    with pytest.raises(TransferError, match=r"1 moves with peer failed: RETRY_EXC_ERR"):
        transport.write(region, ops(), KV, PLENTY_S)
    transport.write(region, ops(), KV, PLENTY_S)


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_transfer_that_gets_nowhere_costs_its_deadline_and_no_more(transport, region, servers_pairs, verb):
    move = getattr(transport, verb)
    move(region, ops(), KV, PLENTY_S)
    servers_pairs.last.close()
    moves = ops(value=9)
    began_s = time.monotonic()
    with pytest.raises(TransferError, match=rf"1 moves with peer were not done after {SHORT_S} s"):
        move(region, moves, KV, SHORT_S)
    assert time.monotonic() - began_s < PLENTY_S / 4
    assert set(moves[0].memory) == {9}
    move(region, ops(), KV, PLENTY_S)


def test_a_queue_that_is_flushed_fails_the_call(transport, region, servers_pairs, clients_pairs):
    from kvstore.verbs_library import QPAttr, enums

    transport.read(region, ops(), KV, PLENTY_S)
    servers_pairs.last.close()
    posted = threading.Event()
    wait = clients_pairs.last.wait
    clients_pairs.last.wait = lambda *args: (posted.set(), wait(*args))[1]
    thread, said = in_thread(lambda: transport.read(region, ops(), KV, PLENTY_S))
    assert posted.wait(PLENTY_S)
    clients_pairs.last._qp.modify(QPAttr(qp_state=enums.IBV_QPS_ERR), enums.IBV_QP_STATE)
    thread.join(PLENTY_S)
    assert "WR_FLUSH_ERR" in said[0]
    transport.read(region, ops(), KV, PLENTY_S)


def test_other_threads_go_on_while_a_call_waits(transport, region, servers_pairs):
    transport.read(region, ops(), KV, PLENTY_S)
    servers_pairs.last.close()
    thread, said = in_thread(lambda: transport.read(region, ops(), KV, 4 * SHORT_S))
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert "were not done" in said[0]
    assert ticks > 10


def test_a_peer_killed_while_bytes_move_is_noticed(transport):
    with OwnerProcess(SMALL, 200, VERBS) as owner:
        transport.read(owner.region, ops(), KV, PLENTY_S)
        moved = threading.Event()
        big = ops(owner.region.nbytes)

        def write_on() -> None:
            while True:
                transport.write(owner.region, big, KV, 10 * PLENTY_S)
                moved.set()

        thread, said = in_thread(write_on)
        assert moved.wait(PLENTY_S)
        owner.kill()
        thread.join(PLENTY_S)
        assert not thread.is_alive()
        assert "is gone" in said[0] or "failed" in said[0]


def test_closing_the_transport_ends_a_call_that_waits(transport, region, servers_pairs):
    transport.read(region, ops(), KV, PLENTY_S)
    servers_pairs.last.close()
    thread, said = in_thread(lambda: transport.read(region, ops(), KV, 10 * PLENTY_S))
    while any(lane.idle for lane in transport._connections._lanes.values()):
        time.sleep(0.001)
    transport.close()
    thread.join(PLENTY_S)
    assert said == ["the verbs transport is closed"]


def test_a_closed_server_is_out_of_reach(transport, server, region):
    transport.write(region, ops(), KV, PLENTY_S)
    server.close()
    server.close()
    with pytest.raises(TransferError, match="is gone"):
        transport.write(region, ops(), KV, PLENTY_S)


def test_a_write_that_failed_is_not_put_down_by_packets_that_come_late(
    transport, region, peer, choice, far_choice, slow_network
):
    if choice == far_choice:
        pytest.skip("NOT TESTED: this machine has one RDMA device, and nothing is late within one")
    transport.write(region, ops(value=5), KV, PLENTY_S)
    slow_network(choice.gid.ipv4, delay_ms=1500)
    with pytest.raises(TransferError, match="were not done after") as raised:
        transport.write(region, ops(offset=1000, value=7), KV, SHORT_S)
    assert "still arrive" not in str(raised.value)
    # What is sent after it arrives after it.
    transport.write(region, ops(offset=2000, value=6), KV, PLENTY_S)
    assert peer.buffer[2000] == 6
    assert not peer.buffer[1000:1008].any()


@pytest.fixture
def slow_network():
    """Delays what a network interface sends, or skips saying why it cannot."""
    slowed = []

    def slow(ipv4, delay_ms):
        listed = subprocess.run(
            ["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=False
        ).stdout
        names = [line.split()[1] for line in listed.splitlines() if f" {ipv4}/" in line]
        if not names or shutil.which("tc") is None:
            pytest.skip(f"NOT TESTED: no interface with {ipv4} whose packets tc could delay")
        command = ["tc", "qdisc", "add", "dev", names[0], "root", "netem", "delay", f"{delay_ms}ms"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NOT TESTED: packets cannot be delayed here: {done.stderr.strip()}")
        slowed.append(names[0])

    yield slow
    for name in slowed:
        subprocess.run(["tc", "qdisc", "del", "dev", name, "root"], check=True)


# -- memory ----------------------------------------------------------------------------------------------


def test_a_row_is_registered_once_and_forgotten_when_it_is_gone(transport, region, monkeypatch):
    registered = []
    register = transport._device.register
    monkeypatch.setattr(
        transport._device, "register", lambda *args: (registered.append(args), register(*args))[1]
    )
    moves = ops(5000)
    for verb in (transport.write, transport.read, transport.write):
        verb(region, moves, KV, PLENTY_S)
    assert len(registered) == 1
    assert len(transport._rows._rows) == 1
    del moves
    assert not transport._rows._rows


def test_memory_that_may_only_be_read_can_be_sent(transport, region, peer):
    source = np.frombuffer(bytes(range(1, 101)), np.uint8)
    transport.write(region, [TransferList.piece(source, 0)], KV, PLENTY_S)
    assert np.array_equal(peer.buffer[:100], source)


def test_memory_that_the_device_cannot_take_is_refused_and_the_next_call_goes_on(transport, region, peer):
    from kvstore.verbs_device import MemoryRefused

    memory = (ctypes.c_uint8 * 4096).from_address(NOBODYS_ADDRESS)
    row = np.frombuffer(memoryview(memory), np.uint8)
    with pytest.raises(MemoryRefused, match="registering 4096 bytes"):
        transport.write(region, [TransferList.piece(row, 0)], KV, PLENTY_S)
    transport.write(region, ops(), KV, PLENTY_S)
    assert peer.buffer[:8].all()


def test_a_memory_that_cannot_be_served_is_named(server, monkeypatch, peer):
    from kvstore.verbs_device import MemoryRefused

    def refuse(*args):
        raise MemoryRefused("the device said no")

    monkeypatch.setattr(server._devices[0], "register", refuse)
    with pytest.raises(StagingError, match=r"staging memory of peer cannot be served: the device said no"):
        server.register(peer)


def test_a_stale_key_reaches_nothing_after_the_server_is_gone(transport, server, region, peer, choice):
    transport.write(region, ops(), KV, PLENTY_S)
    old = idle_connection(transport)._memory
    server.close()
    from kvstore.verbs_server import VerbsServer

    with (
        closing(StagingMemory.create("peer", SMALL, num_slots=4)) as other,
        closing(VerbsServer(TOKEN, [choice])) as again,
    ):
        new = again.register(other)
        transport.write(new, ops(), KV, PLENTY_S)
        (connection,) = [
            each
            for key, lane in transport._connections._lanes.items()
            for each in lane.idle
            if key.incarnation == new.incarnation
        ]
        connection._memory = RemoteMemory(old.address, old.rkey)
        with pytest.raises(TransferError, match="REM_ACCESS_ERR"):
            transport.write(new, ops(offset=64), KV, PLENTY_S)
    assert not peer.buffer[64:].any()


class FakeDriver:
    """The CUDA driver of a machine whose every address is a GPU's, and which exports what it is told to."""

    def __init__(self, fd):
        self.fd = fd

    def cuPointerGetAttribute(self, kind, _, address):
        kind._obj.value = 2
        return 0

    def cuMemGetAddressRange_v2(self, base, nbytes, address):
        base._obj.value, nbytes._obj.value = address.value - 8192, 1 << 20
        return 0

    def cuMemGetHandleForAddressRange(self, fd, base, nbytes, kind, flags):
        if self.fd is None:
            return 801
        fd._obj.value = os.dup(self.fd)
        return 0


@pytest.mark.parametrize("exports", [True, False])
def test_memory_of_a_gpu_that_the_platform_cannot_reach_is_refused(transport, monkeypatch, exports):
    """soft-RoCE takes no dma-buf, and without a GPU there is none: only the refusals can be tested."""
    from kvstore import cuda_dmabuf
    from kvstore.verbs_device import LOCAL_WRITE, MemoryRefused

    with tempfile.TemporaryFile() as file:
        driver = FakeDriver(file.fileno() if exports else None)
        monkeypatch.setattr(cuda_dmabuf.ctypes, "CDLL", lambda name: driver)
        said = "does not take memory of a GPU" if exports else "gives no dma-buf .*error 801.*nvidia-peermem"
        with pytest.raises(MemoryRefused, match=said):
            transport._device.register(NOBODYS_ADDRESS, 4096, LOCAL_WRITE)

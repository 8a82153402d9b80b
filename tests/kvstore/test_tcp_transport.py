"""What the TCP transport lets in and what it costs: strangers, liars, the slow, the stopped and the dead."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore import connection_pool, keyed_listener, tcp_connections, tcp_server
from kvstore.checksum import checksum
from kvstore.errors import StagingError, TransferError
from kvstore.job_token import JobToken
from kvstore.staging import StagingMemory
from kvstore.tcp_address import TcpAddress
from kvstore.tcp_channel import ChannelError, TcpChannel
from kvstore.tcp_dscp import set_dscp
from kvstore.tcp_handshake import Hello, Verdict, greet
from kvstore.tcp_server import TcpServer
from kvstore.tcp_transport import TcpTransport
from kvstore.tcp_wire import ANSWER_BYTES, MAX_RANGES, Header, Kind, Status, region_id, unpack_answer
from kvstore.traffic import CLASS_TABLE, ClassSettings, TrafficClass
from kvstore.transport import RegionHandle, TransferList
from tests.kvstore.kv_blocks import PLENTY_S, SMALL
from tests.kvstore.owner_process import TCP, TOKEN, OwnerProcess

KV = TrafficClass.KV
OTHER_TOKEN = JobToken(b"the token of quite another job")
SHORT_S = 0.3


@pytest.fixture
def transport():
    with closing(TcpTransport(TOKEN)) as transport:
        yield transport


@pytest.fixture
def server():
    with closing(TcpServer(TOKEN)) as server:
        yield server


@pytest.fixture
def peer():
    with closing(StagingMemory.create("peer", SMALL, num_slots=4)) as peer:
        yield peer


@pytest.fixture
def region(server, peer):
    return server.register(peer)


@pytest.fixture
def owner():
    with OwnerProcess(SMALL, 3, TCP) as owner:
        yield owner


class Client:
    """A TCP client that says what it likes."""

    def __init__(self, region: RegionHandle) -> None:
        address = TcpAddress.parse(region.address)
        self.region = region
        self.channel = TcpChannel(socket.create_connection((address.ip, address.port), PLENTY_S))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.channel.close()

    def greet(self, token: JobToken = TOKEN, traffic_class: TrafficClass = KV) -> Verdict:
        return greet(self.channel, token, Hello(region_id(self.region.incarnation), traffic_class), soon_s())

    def say(self, data: bytes) -> None:
        self.channel.send([memoryview(data)], soon_s())

    def say_what_ends_it(self, data: bytes) -> None:
        """Say what the server may hang up at before all of it is said."""
        with suppress(ChannelError):
            self.say(data)

    def hear(self, nbytes: int) -> bytes:
        data = bytearray(nbytes)
        self.channel.receive([memoryview(data)], soon_s())
        return bytes(data)

    def ask(self, *ranges: tuple[int, int], **fields: object) -> None:
        """Send a request to read `ranges`, of which the header says what `fields` say."""
        header = Header(
            kind=Kind.READ,
            deadline_ms=int(PLENTY_S * 1000),
            num_ranges=len(ranges),
            request_id=1,
            region_id=region_id(self.region.incarnation),
            nbytes=sum(nbytes for _, nbytes in ranges),
        )
        self.say(replace(header, **fields).pack() + b"".join(struct.pack("!QQ", *part) for part in ranges))

    def answer(self) -> Status:
        return unpack_answer(self.hear(ANSWER_BYTES), 1)

    def is_cut_off(self) -> bool:
        """Has the server closed the connection, or does it within a minute?"""
        try:
            self.channel.receive([memoryview(bytearray(1 << 20))], soon_s())
        except ChannelError as error:
            return "time is over" not in str(error)
        return False


def soon_s() -> float:
    return time.monotonic() + PLENTY_S


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = soon_s()
    while not condition():
        assert time.monotonic() < end_s, "it did not come to be"
        time.sleep(0.005)


def ops(nbytes: int = 8, offset: int = 0, value: int = 1) -> list[TransferList]:
    return [TransferList.piece(np.full(nbytes, value, np.uint8), offset)]


def num_sockets(pid: int | str = "self") -> int:
    """Sockets that a process has open."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(path).startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            continue
    return count


def idle_channels(transport: TcpTransport) -> list[TcpChannel]:
    return [each.channel for lane in transport._connections._lanes.values() for each in lane.idle]


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


# -- who is let in ---------------------------------------------------------------------------------------


def test_a_wrong_token_lets_nobody_in_and_harms_nobody(transport, region, peer):
    with closing(TcpTransport(OTHER_TOKEN)) as stranger, pytest.raises(TransferError, match="token"):
        stranger.write(region, ops(), KV, PLENTY_S)
    assert not peer.buffer.any()
    transport.write(region, ops(), KV, PLENTY_S)
    assert peer.buffer.any()


def test_a_request_without_a_handshake_costs_the_connection(region, peer):
    with Client(region) as client:
        client.ask((0, 8), kind=Kind.WRITE)
        client.say_what_ends_it(b"x" * 100)
        assert client.is_cut_off()
    assert not peer.buffer.any()


def test_a_proof_that_was_overheard_is_of_no_use_again(region):
    """The fake server hears hello and proof; the real one, whose nonce is another, does not take them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake = replace(region, address=str(TcpAddress(*listener.getsockname())))
        with closing(TcpTransport(TOKEN)) as transport:
            thread, said = in_thread(lambda: transport.read(fake, ops(), KV, PLENTY_S))
            heard, _ = listener.accept()
            with heard:
                hello = heard.recv(57, socket.MSG_WAITALL)
                heard.sendall(b"DPTCP001" + secrets.token_bytes(32))
                proof = heard.recv(32, socket.MSG_WAITALL)
                heard.sendall(secrets.token_bytes(34))
                thread.join(PLENTY_S)
    assert "does not know the job's token" in said[0]
    assert TOKEN.secret not in hello + proof
    with Client(region) as client:
        client.say(hello)
        client.hear(40)
        client.say(proof)
        assert client.is_cut_off()


@pytest.mark.parametrize("nbytes", [1, 57, 100_000])
def test_garbage_costs_the_connection_and_nothing_else(transport, region, nbytes, monkeypatch):
    with monkeypatch.context() as patch, Client(region) as client:
        patch.setattr(keyed_listener, "HANDSHAKE_DEADLINE_S", SHORT_S)
        client.say_what_ends_it(np.random.default_rng(nbytes).bytes(nbytes))
        assert client.is_cut_off()
    transport.read(region, ops(), KV, PLENTY_S)


def test_garbage_after_the_handshake_costs_the_connection_and_nothing_else(transport, region, peer):
    with Client(region) as client:
        client.greet()
        client.say_what_ends_it(np.random.default_rng(1).bytes(1000))
        assert client.is_cut_off()
    transport.read(region, ops(), KV, PLENTY_S)
    assert not peer.buffer.any()


def test_the_oldest_of_too_many_strangers_makes_room_for_the_next_client(transport, region, monkeypatch):
    monkeypatch.setattr(keyed_listener, "MAX_STRANGERS", 3)
    strangers = [Client(region) for _ in range(3)]
    transport.read(region, ops(), KV, PLENTY_S)
    assert strangers[0].is_cut_off()
    assert strangers[2].channel.is_quiet()
    for stranger in strangers:
        stranger.channel.close()


# -- what may be asked -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "wrong",
    [(4 * SMALL.slot_bytes, 1), (4 * SMALL.slot_bytes - 1, 2), ((1 << 64) - 4, 8), (1 << 63, 1 << 35)],
)
def test_a_range_outside_the_region_is_refused_before_a_byte_moves(region, peer, kind, wrong):
    with Client(region) as client:
        client.greet()
        client.ask((0, 8), wrong, kind=kind)
        assert client.answer() is Status.OUTSIDE_REGION
        assert client.is_cut_off()
    assert not peer.buffer.any()


def test_a_list_that_is_too_long_is_not_even_read(transport, region):
    with Client(region) as client:
        client.greet()
        client.ask((0, 8), num_ranges=MAX_RANGES + 1)
        assert client.is_cut_off()
    transport.read(region, ops(), KV, PLENTY_S)


def test_a_long_list_goes_in_parts(transport, region, peer):
    source = np.random.default_rng(4).integers(0, 256, MAX_RANGES + 7, dtype=np.uint8)
    index = np.arange(len(source))
    places = index % 2 * 5000 + index // 100
    last = {int(place): byte for place, byte in zip(places, source, strict=True)}
    source = np.array([last[place] for place in places.tolist()], np.uint8)
    parts = TransferList.equal(source, index, places, 1)
    transport.write(region, [parts, ops()[0]], KV, PLENTY_S)
    wanted = np.zeros(region.nbytes, np.uint8)
    wanted[places] = source
    wanted[:8] = 1
    assert np.array_equal(peer.buffer, wanted)


def test_sizes_that_do_not_add_up_are_refused(region, peer):
    with Client(region) as client:
        client.greet()
        client.ask((0, 8), (50, 8), nbytes=1 << 30, kind=Kind.WRITE)
        assert client.answer() is Status.MALFORMED
        assert client.is_cut_off()
    assert not peer.buffer.any()


def test_every_request_is_checked_for_its_incarnation(region):
    with Client(region) as client:
        client.greet()
        client.ask((0, 8))
        assert client.answer() is Status.OK
        client.hear(8)
        client.ask((0, 8), region_id=region_id("another"))
        assert client.answer() is Status.OTHER_INCARNATION
        assert client.is_cut_off()


# -- the slow --------------------------------------------------------------------------------------------


def test_a_stranger_who_drips_is_cut_off_while_others_go_on(transport, region, monkeypatch):
    transport.read(region, ops(), KV, PLENTY_S)
    monkeypatch.setattr(keyed_listener, "HANDSHAKE_DEADLINE_S", SHORT_S)
    with Client(region) as client:
        cut_off = threading.Event()

        def drip() -> None:
            try:
                while True:
                    client.say(b"D")
                    time.sleep(SHORT_S / 20)
            except ChannelError:
                cut_off.set()

        threading.Thread(target=drip, daemon=True).start()
        moved = 0
        while not cut_off.is_set():
            transport.read(region, ops(), KV, PLENTY_S)
            moved += 1
        assert moved > 1


@pytest.mark.parametrize("kept", [1, 20, 60], ids=["header", "more of it", "ranges"])
def test_a_request_that_comes_in_drops_is_cut_off(transport, region, monkeypatch, kept):
    monkeypatch.setattr(tcp_server, "HEADER_DEADLINE_S", SHORT_S)
    with Client(region) as client:
        client.greet()
        say, client.say = client.say, lambda data: say(data[:kept])
        client.ask((0, 8), (50, 8))
        assert client.is_cut_off()
    transport.read(region, ops(), KV, PLENTY_S)


def test_bytes_that_do_not_come_by_the_callers_own_deadline_are_not_waited_for(region, peer):
    with Client(region) as client:
        client.greet()
        client.ask((0, 8), kind=Kind.WRITE, deadline_ms=50)
        assert client.is_cut_off()


def test_a_caller_that_does_not_read_holds_up_nobody_and_is_cut_off(transport):
    with (
        closing(StagingMemory.create("big", SMALL, num_slots=10_000)) as big,
        closing(TcpServer(TOKEN)) as server,
    ):
        region = server.register(big)
        with Client(region) as client:
            client.greet()
            client.ask((0, region.nbytes), deadline_ms=int(SHORT_S * 1000))
            transport.read(region, ops(), KV, PLENTY_S)
            wait_until(client.channel.is_hung_up)


def test_a_connection_at_rest_is_kept(transport, region, monkeypatch):
    monkeypatch.setattr(tcp_server, "HEADER_DEADLINE_S", SHORT_S)
    with Client(region) as client:
        client.greet()
        before_s = time.monotonic()
        wait_until(lambda: time.monotonic() - before_s > 2 * SHORT_S)
        client.ask((0, 8))
        assert client.answer() is Status.OK


# -- the stopped and the dead ----------------------------------------------------------------------------


def test_a_stopped_peer_costs_the_deadline_and_its_late_answer_is_taken_for_no_other(transport, owner):
    owner.fill(0, 7)
    owner.fill(1, 8)
    there = ops()
    transport.read(owner.region, there, KV, PLENTY_S)
    owner.stop()
    with pytest.raises(TransferError, match=r"1 moves with owner were not done after 0.3 s"):
        transport.read(owner.region, there, KV, SHORT_S)
    owner.go_on()
    other = ops(offset=SMALL.slot_bytes)
    transport.read(owner.region, other, KV, PLENTY_S)
    assert set(other[0].memory) == {8}


def test_a_peer_that_was_stopped_before_it_was_ever_reached_costs_the_deadline(transport, owner):
    owner.stop()
    with pytest.raises(TransferError, match=r"were not done after 0.3 s"):
        transport.read(owner.region, ops(), KV, SHORT_S)


def test_a_write_whose_caller_gave_up_is_not_begun(transport, owner):
    transport.read(owner.region, ops(), KV, PLENTY_S)
    before, num_open = owner.slot_checksum(0), num_sockets(owner.handle.pid)
    owner.stop()
    with pytest.raises(TransferError, match="were not done"):
        transport.write(owner.region, ops(100), KV, SHORT_S)
    owner.go_on()
    wait_until(lambda: num_sockets(owner.handle.pid) < num_open)
    assert owner.slot_checksum(0) == before


def test_a_peer_killed_in_the_middle_of_a_big_write_is_noticed_at_once(transport):
    with OwnerProcess(SMALL, 10_000, TCP) as owner:
        transport.read(owner.region, ops(), KV, PLENTY_S)
        owner.stop()
        big = ops(owner.region.nbytes)
        thread, said = in_thread(lambda: transport.write(owner.region, big, KV, 10 * PLENTY_S))
        wait_until(lambda: not idle_channels(transport))
        owner.kill()
        thread.join(PLENTY_S)
        assert not thread.is_alive()
        assert "is gone" in said[0]


def test_a_client_killed_in_the_middle_of_a_big_write_leaves_no_connection(transport, region, peer):
    before = num_sockets()
    with Client(region) as client:
        client.greet()
        client.ask((0, 1000), kind=Kind.WRITE)
        client.say(b"x" * 500)
    wait_until(lambda: num_sockets() == before)
    transport.read(region, ops(), KV, PLENTY_S)


def test_a_half_closed_connection_is_closed(region, peer):
    with Client(region) as client:
        client.greet()
        client.ask((0, 8), kind=Kind.WRITE)
        client.channel.socket.shutdown(socket.SHUT_WR)
        assert client.is_cut_off()
    assert not peer.buffer.any()


def test_a_peer_restarted_at_the_same_port_is_another_peer(transport, peer):
    with closing(TcpServer(TOKEN)) as server:
        old = server.register(peer)
        transport.write(old, ops(value=5), KV, PLENTY_S)
    with (
        closing(StagingMemory.create("peer", SMALL, num_slots=4)) as restarted,
        closing(TcpServer(TOKEN, port=server.address.port)) as again,
    ):
        new = again.register(restarted)
        assert new.address == old.address
        for _ in range(2):
            with pytest.raises(TransferError, match=r"is gone: at .* is another incarnation"):
                transport.write(old, ops(), KV, PLENTY_S)
        assert not restarted.buffer.any()
        transport.write(new, ops(value=6), KV, PLENTY_S)
        assert restarted.buffer[0] == 6
    assert peer.buffer[0] == 5


def test_connections_to_dead_peers_do_not_pile_up(transport, region):
    with OwnerProcess(SMALL, 3, TCP) as owner:
        before = num_sockets()
        transport.read(owner.region, ops(), KV, PLENTY_S)
        assert num_sockets() == before + 1
        owner.kill()
        transport.read(region, ops(), KV, PLENTY_S)
        assert num_sockets() == before + 2  # both ends of the new one


def test_a_closed_server_is_out_of_reach_and_puts_down_no_more_bytes(transport, server, region, peer):
    with Client(region) as client:
        client.greet()
        client.ask((0, 1000), kind=Kind.WRITE)
        client.say(b"x" * 500)
        wait_until(lambda: bool(peer.buffer[499]))
        server.close()
        server.close()
        assert client.is_cut_off()
    assert np.count_nonzero(peer.buffer) == 500
    with pytest.raises(TransferError, match="is gone"):
        transport.write(region, ops(), KV, PLENTY_S)


def test_closing_the_transport_ends_a_call_that_waits(transport, owner):
    transport.read(owner.region, ops(), KV, PLENTY_S)
    owner.stop()
    thread, said = in_thread(lambda: transport.read(owner.region, ops(), KV, 10 * PLENTY_S))
    wait_until(lambda: not idle_channels(transport))
    transport.close()
    thread.join(PLENTY_S)
    assert said == ["the TCP transport is closed"]


def test_calls_beyond_the_connections_wait_for_one_until_their_deadline(transport, owner):
    transport.read(owner.region, ops(), KV, PLENTY_S)
    owner.stop()
    calls = [
        in_thread(lambda: transport.read(owner.region, ops(), KV, SHORT_S))
        for _ in range(connection_pool.MAX_PER_LANE + 3)
    ]
    for thread, said in calls:
        thread.join(PLENTY_S)
        assert "were not done after 0.3 s" in said[0]
    owner.go_on()
    transport.read(owner.region, ops(), KV, PLENTY_S)


# -- traffic classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_has_the_code_point_it_was_given(family):
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with sock:
        assert [set_dscp(sock, dscp) for dscp in (0, 10, 46, 63)] == [0, 10, 46, 63]


@pytest.mark.parametrize("traffic_class", list(TrafficClass))
def test_a_connection_has_the_code_point_of_its_class_at_both_ends(transport, region, traffic_class):
    wanted = CLASS_TABLE[traffic_class].dscp
    with Client(region) as client:
        assert client.greet(traffic_class=traffic_class).dscp == wanted
    transport.read(region, ops(), traffic_class, PLENTY_S)
    (channel,) = idle_channels(transport)
    assert channel.socket.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == wanted << 2


def test_a_server_with_another_class_table_is_refused_and_both_values_are_named(transport, peer):
    classes = {c: ClassSettings(s.service_level, 33, s.io_priority) for c, s in CLASS_TABLE.items()}
    with closing(TcpServer(TOKEN, classes=classes)) as server:
        region = server.register(peer)
        with pytest.raises(TransferError, match="class kv has DSCP 33 at peer, not 10"):
            transport.write(region, ops(), KV, PLENTY_S)
    assert not peer.buffer.any()


def test_a_system_that_ignores_the_code_point_is_noticed(transport, region, monkeypatch):
    monkeypatch.setattr(tcp_connections, "set_dscp", lambda sock, dscp: set_dscp(sock, 0))
    with pytest.raises(TransferError, match="class kv has DSCP 0 at this end, not 10"):
        transport.write(region, ops(), KV, PLENTY_S)


# -- where it listens ------------------------------------------------------------------------------------


def test_it_listens_on_loopback_unless_told_otherwise(server):
    assert server.address.ip == "127.0.0.1"
    listening = [
        line.split()[1].split(":")[0]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{server.address.port:04X}") and line.split()[3] == "0A"
    ]
    assert listening == ["0100007F"]


def test_it_listens_on_the_address_it_was_given(transport, peer):
    with closing(TcpServer(TOKEN, listen="127.0.0.9")) as server:
        region = server.register(peer)
        assert region.address == f"tcp:127.0.0.9:{server.address.port}"
        transport.write(region, ops(), KV, PLENTY_S)


def test_it_listens_on_ipv6(transport, peer):
    try:
        server = TcpServer(TOKEN, listen="::1")
    except StagingError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with closing(server):
        region = server.register(peer)
        transport.write(region, ops(value=3), KV, PLENTY_S)
        transport.write(region, ops(value=4), TrafficClass.MODEL, PLENTY_S)
    assert peer.buffer[0] == 4


@pytest.mark.parametrize("listen", ["", "0.0.0.0", "::"])
def test_it_does_not_listen_everywhere(listen):
    with pytest.raises(StagingError, match="every network of this machine"):
        TcpServer(TOKEN, listen=listen)


@pytest.mark.parametrize("listen", ["192.0.2.1", "no such name"])
def test_an_address_that_is_not_this_machines_is_named(listen):
    with pytest.raises(StagingError, match=rf"transport\.listen='{listen}'"):
        TcpServer(TOKEN, listen=listen)


def test_a_port_in_use_is_named(server):
    with pytest.raises(StagingError, match=f"port {server.address.port}"):
        TcpServer(TOKEN, port=server.address.port)


def test_two_memories_of_one_process_are_served_at_one_port(transport, server, region, peer):
    with closing(StagingMemory.create("second", SMALL, num_slots=1)) as second:
        other = server.register(second)
        transport.write(other, ops(value=2), KV, PLENTY_S)
        transport.write(region, ops(value=1), KV, PLENTY_S)
        assert (peer.buffer[0], second.buffer[0]) == (1, 2)
        assert checksum(second.slot(0)) != checksum(peer.slot(0))

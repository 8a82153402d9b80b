"""Which port and GID are chosen, and what is said where there is none."""

from __future__ import annotations

import sys

import pytest

from kvstore.errors import TransportUnavailable
from kvstore.verbs_devices import Link, PortGid, VerbsPort, VerbsPorts, choose_port, choose_rails, find_ports

LOCAL_1 = PortGid(0, "fe80:0000:0000:0000:0000:00ff:fe00:0001", "RoCE v1")
LOCAL_2 = PortGid(1, "fe80:0000:0000:0000:0000:00ff:fe00:0001", "RoCE v2")
IPV4_1 = PortGid(2, "0000:0000:0000:0000:0000:ffff:0a00:0001", "RoCE v1")
IPV4_2 = PortGid(3, "0000:0000:0000:0000:0000:ffff:0a00:0001", "RoCE v2")
IPV6_2 = PortGid(4, "2001:0db8:0000:0000:0000:0000:0000:0001", "RoCE v2")
INFINIBAND = PortGid(0, "fe80:0000:0000:0000:0002:c903:0000:0001", "IB")


def port(device="mlx5_0", number=1, *, link=Link.ETHERNET, active=True, gbits=400, gids=(LOCAL_1, LOCAL_2)):
    return VerbsPort(device, number, link, active, 4096, gbits, tuple(gids))


def choose(*ports, device=None, number=None, gid_index=None):
    return choose_port(VerbsPorts(ports, None), device, number, gid_index)


@pytest.mark.parametrize(
    ("gids", "best"),
    [
        ((LOCAL_1, LOCAL_2, IPV4_1, IPV4_2, IPV6_2), IPV4_2),
        ((LOCAL_1, LOCAL_2, IPV6_2), IPV6_2),
        ((LOCAL_1, LOCAL_2), LOCAL_2),
        ((LOCAL_1, IPV4_1), IPV4_1),
        ((IPV4_1, IPV6_2), IPV6_2),
        ((INFINIBAND,), INFINIBAND),
    ],
)
def test_the_gid_of_an_ipv4_address_by_the_newer_roce_is_the_best(gids, best):
    assert choose(port(gids=gids)).gid == best


def test_a_port_that_is_down_is_not_taken():
    assert choose(port("mlx5_0", active=False), port("mlx5_1")).port.device == "mlx5_1"
    with pytest.raises(TransportUnavailable, match=r"no RDMA port is active of mlx5_0:1 \(down"):
        choose(port("mlx5_0", active=False))


def test_of_equal_ports_the_first_is_taken():
    assert choose(port("a"), port("b")).port.device == "a"


def test_a_faster_port_is_better_unless_its_address_is_worse():
    assert choose(port("a", gbits=25), port("b", gbits=400)).port.device == "b"
    assert choose(port("a", gbits=25, gids=[IPV4_2]), port("b", gids=[LOCAL_2])).port.device == "a"


@pytest.mark.parametrize(
    ("ports", "device", "rails"),
    [
        ([port("a"), port("b"), port("c")], None, "abc"),
        ([port("a"), port("b"), port("c")], "b", "b"),
        ([port("a", gbits=25), port("b"), port("c")], None, "bc"),
        ([port("a"), port("b", active=False), port("c")], None, "ac"),
        ([port("a"), port("b", gids=[LOCAL_1])], None, "a"),
        (
            [port("a", link=Link.INFINIBAND, gids=[INFINIBAND]), port("b", gids=[IPV4_2]), port("c")],
            None,
            "a",
        ),
    ],
)
def test_rails_are_the_best_port_and_those_that_are_like_it(ports, device, rails):
    chosen = choose_rails(VerbsPorts(tuple(ports), None), device, None, None)
    assert "".join(each.port.device for each in chosen) == rails


def test_what_is_asked_for_is_taken():
    ports = (port("a", gids=[IPV4_2]), port("b", 1, gids=[LOCAL_2]), port("b", 2, gids=[LOCAL_1, LOCAL_2]))
    chosen = choose(*ports, device="b", number=2, gid_index=0)
    assert (str(chosen.port), chosen.gid) == ("b:2", LOCAL_1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device": "mlx9"}, r"transport\.device=mlx9.*there are mlx5_0:1"),
        ({"number": 2}, r"transport\.device_port=2.*there are mlx5_0:1"),
        ({"gid_index": 7}, r"mlx5_0:1 .*GIDs \[0, 1\].* has transport\.gid_index=7"),
    ],
)
def test_what_there_is_not_is_named_with_what_there_is(asked, said):
    with pytest.raises(TransportUnavailable, match=said):
        choose(port(), **asked)


def test_a_machine_without_rdma_says_why():
    with pytest.raises(TransportUnavailable, match=r"transport=verbs needs an RDMA device: it has none"):
        choose_port(VerbsPorts((), "it has none"), None, None, None)


def test_without_pyverbs_there_are_no_ports(monkeypatch):
    for name in ("kvstore.verbs_ports", "kvstore.verbs_library"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pyverbs", None)
    found = find_ports()
    assert not found.ports
    assert "python3-pyverbs" in found.why_none


def test_the_ipv4_address_of_a_gid_is_told():
    assert (IPV4_2.ipv4, IPV6_2.ipv4) == ("10.0.0.1", None)

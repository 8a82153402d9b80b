"""`transport=auto` takes the best that every host of the job has, and says why."""

import re
from dataclasses import replace

import pytest

from kvstore.errors import TransportUnavailable
from kvstore.host_facts import HostFacts, host_facts
from kvstore.transport_choice import choose_transport
from kvstore.transport_config import TransportConfig

A = HostFacts("a", "kernel-a", None, "no device")
B = HostFacts("b", "kernel-b", None, "no device")
A_RDMA = HostFacts("a", "kernel-a", "mlx5_0:1", "")
B_RDMA = HostFacts("b", "kernel-b", "mlx5_0:1", "")
A_CONTAINER = HostFacts("a-2", "kernel-a, other processes", None, "no device")


def config(kind="auto", listen="eth0"):
    return TransportConfig(kind, listen, None, None, None)


@pytest.mark.parametrize(
    ("hosts", "kind", "why"),
    [
        ([A], "shm", "no RDMA on a (no device); all nodes on one host"),
        ([A, A], "shm", "no RDMA on a (no device); all nodes on one host"),
        ([A, B], "tcp", "no RDMA on a (no device); nodes on 2 hosts"),
        ([A_RDMA, A_RDMA], "verbs", "RDMA on a: mlx5_0:1"),
        ([A_RDMA, B_RDMA], "verbs", "RDMA on a: mlx5_0:1, b: mlx5_0:1"),
        ([A_RDMA, B], "tcp", "no RDMA on b (no device); nodes on 2 hosts"),
        ([A, A_CONTAINER], "tcp", "no RDMA on a (no device); nodes on 2 hosts"),
    ],
)
def test_the_best_that_all_hosts_have_is_chosen_and_the_reason_told(hosts, kind, why):
    choice = choose_transport(config(), hosts)
    assert choice.config.kind == kind
    assert choice.config.listen == "eth0"
    assert choice.told == f"transport: {kind} ({why})"


@pytest.mark.parametrize(("kind", "hosts"), [("shm", [A, A]), ("tcp", [A, B]), ("tcp", [A_RDMA])])
def test_what_is_configured_is_kept(kind, hosts):
    assert choose_transport(config(kind), hosts).told == f"transport: {kind} (as configured)"


def test_nixl_is_told_to_have_no_traffic_class_per_flow():
    assert "no traffic class per flow" in choose_transport(config("nixl"), [A, B]).told


def test_shared_memory_over_several_hosts_is_refused_with_their_names():
    with pytest.raises(TransportUnavailable, match=r"transport=shm needs .* on a, b; use transport=auto"):
        choose_transport(config("shm"), [A, B])


@pytest.mark.parametrize("listen", ["127.0.0.1", "::1", "localhost", "lo"])
@pytest.mark.parametrize("kind", ["auto", "tcp"])
def test_an_address_that_other_hosts_cannot_reach_is_refused(kind, listen):
    with pytest.raises(TransportUnavailable, match=rf"on a, b, and at transport\.listen={listen} .*=eth0"):
        choose_transport(config(kind, listen), [A, B])
    assert choose_transport(config(kind, listen), [A]).config.listen == listen


def test_this_host_shares_memory_with_itself():
    facts = host_facts(config())
    assert facts == host_facts(config())
    assert choose_transport(config(), [facts, facts]).config.kind == ("verbs" if facts.rdma else "shm")


def test_a_device_that_is_not_there_is_no_rdma():
    facts = host_facts(replace(config(), device="no_such_device"))
    assert facts.rdma is None
    assert facts.no_rdma


@pytest.mark.rdma
def test_where_there_is_rdma_auto_is_verbs_and_names_the_port():
    choice = choose_transport(config(), [host_facts(config())])
    assert choice.config.kind == "verbs"
    assert re.search(r"RDMA on .*: rxe0:1, GID \d+, RoCE v2", choice.told)

"""What the probes of the store and the transports say of this machine, and of one that lacks something."""

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore.host_memory import available_bytes
from kvstore.probes.finding import Verdict
from kvstore.probes.io_uring import probe_io_uring
from kvstore.probes.loopback import Loopback, LoopbackServer, probe_loopback
from kvstore.probes.memory import probe_copy_rate, probe_limits, probe_memory
from kvstore.probes.processor import probe_processor
from kvstore.probes.rdma import kernel_devices, probe_rdma
from kvstore.probes.store_place import probe_disk_rate, probe_store_place
from kvstore.probes.traffic_classes import probe_tcp_classes
from kvstore.transport_config import TransportConfig
from rollout.compose import load_config

AUTO = TransportConfig("auto", "127.0.0.1", None, None, None)


@pytest.fixture(scope="module")
def store():
    return load_config().kvstore


def only(findings):
    (finding,) = findings
    return finding


def test_memory_that_all_nodes_need_is_held_against_what_there_is(store):
    assert only(probe_memory(replace(store, staging_bytes=1 << 20), 3)).verdict is Verdict.OK
    finding = only(probe_memory(replace(store, staging_bytes=available_bytes()), 2))
    assert finding.verdict is Verdict.FAIL
    assert "kvstore.staging_bytes" in finding.advice


def test_rates_are_figures_for_machines_too(store, tmp_path):
    assert only(probe_copy_rate()).figures["bytes_per_s"] > 0
    assert only(probe_loopback()).figures["tcp_bytes_per_s"] > 0
    disk = only(probe_disk_rate(store, tmp_path / "not" / "there"))
    assert min(disk.figures.values()) > 0
    assert list(tmp_path.iterdir()) == []


def test_all_bytes_are_through_when_a_loopback_says_so():
    with LoopbackServer(6 << 20) as server, Loopback(server.port) as loopback:
        for nbytes in (3 << 20, 0, 5 << 20):
            assert loopback.send(np.ones(nbytes, np.uint8)) > 0


def test_a_loopback_serves_one_client_after_another():
    with LoopbackServer(1 << 20) as server:
        for _ in range(3):
            with Loopback(server.port) as loopback:
                assert loopback.send(np.ones(1 << 20, np.uint8)) > 0


def test_the_place_of_the_store_tells_its_file_system_and_its_room(store, tmp_path):
    place, direct = probe_store_place(store, tmp_path / "kv")
    assert place.verdict is not Verdict.FAIL
    assert str(tmp_path / "kv") in place.told
    assert place.figures["free_bytes"] > 0
    assert direct.subject == "O_DIRECT"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_full_fails_and_a_capacity_above_it_warns(store, tmp_path):
    full, _ = probe_store_place(replace(store, segment_bytes=1 << 40), tmp_path)
    assert full.verdict is Verdict.FAIL
    assert "kvstore.path" in full.advice
    large, _ = probe_store_place(replace(store, capacity_bytes=1 << 60), tmp_path)
    assert large.verdict is Verdict.WARN
    assert "capacity_bytes" in large.advice


def test_tmpfs_is_named(store):
    with_tmpfs = Path("/dev/shm")
    place, direct = probe_store_place(store, with_tmpfs)
    assert (place.verdict, "tmpfs" in place.told) == (Verdict.WARN, True)
    assert direct.verdict in (Verdict.OK, Verdict.WARN)


def test_few_files_are_a_warning_with_the_command(store):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        files, locked = probe_limits(store, AUTO)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert files.verdict is Verdict.WARN
    assert "ulimit -n" in files.advice
    assert "ulimit -l" in locked.told


def test_classes_io_uring_and_processor_are_told():
    assert "KV has DSCP 10" in only(probe_tcp_classes()).told
    assert only(probe_io_uring()).verdict is Verdict.OK
    assert only(probe_processor()).figures["cores"] >= 1


def test_devices_of_the_kernel_are_named(tmp_path):
    assert kernel_devices(tmp_path / "none") == []
    (tmp_path / "mlx5_1").mkdir()
    (tmp_path / "mlx5_0").mkdir()
    assert kernel_devices(tmp_path) == ["mlx5_0", "mlx5_1"]


@pytest.mark.skipif(bool(kernel_devices()), reason="this machine has an RDMA device")
@pytest.mark.parametrize(("kind", "verdict"), [("auto", Verdict.WARN), ("verbs", Verdict.FAIL)])
def test_no_rdma_fails_only_where_it_was_asked_for(kind, verdict):
    finding = only(probe_rdma(replace(AUTO, kind=kind)))
    assert (finding.subject, finding.verdict) == ("RDMA", verdict)
    assert finding.told.startswith("no device (")
    assert finding.advice


@pytest.mark.rdma
def test_a_device_is_told_with_its_addresses_and_carries_each_class():
    device, gids, classes = probe_rdma(AUTO)
    assert [each.verdict for each in (device, gids, classes)] == [Verdict.OK] * 3
    assert "verbs use rxe0:1" in device.told
    assert "MTU 4096" in device.told
    assert "10.9.0.1 (RoCE v2)" in gids.told
    assert "KV service level 2, DSCP 10" in classes.told

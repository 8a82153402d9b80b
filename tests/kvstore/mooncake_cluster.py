"""A Mooncake cluster on loopback: the real master in its own process, stores of this process as its nodes."""

from __future__ import annotations

import ctypes
import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.block_record import record_header_bytes
from kvstore.layout import BlockLayout
from kvstore.mooncake_config import MooncakeConfig
from kvstore.mooncake_store import MooncakeStore
from kvstore.store import BlockLocation

START_DEADLINE_S = 30.0
NODE_MEMORY_BYTES = 32 << 20


def skip_without_mooncake() -> None:
    """Skip the test, and say what to install, where Mooncake cannot be loaded."""
    if importlib.util.find_spec("mooncake") is None:
        pytest.skip("Mooncake is not installed: pip install -e '.[mooncake]'")
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError as error:
        pytest.skip(f"Mooncake's wheel cannot be loaded ({error}): apt-get install libibverbs1")


class MooncakeCluster:
    """Use as a context manager."""

    def __init__(self, log: Path) -> None:
        self._log = log
        rpc_port, metrics_port = _free_ports()
        self.config = MooncakeConfig(f"127.0.0.1:{rpc_port}", "tcp", "", NODE_MEMORY_BYTES)
        self._options = (
            "--rpc_address=127.0.0.1",
            f"--rpc_port={rpc_port}",
            "--rpc_thread_num=2",
            "--metrics_host=127.0.0.1",
            f"--metrics_port={metrics_port}",
            "--enable_metric_reporting=false",
        )
        self._stores: dict[tuple[BlockLayout, str], MooncakeStore] = {}

    def __enter__(self) -> MooncakeCluster:
        self.start_master()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for store in self._stores.values():
            store.close()
        self.kill_master()

    def start_master(self) -> None:
        master = Path(sys.executable).parent / "mooncake_master"
        with self._log.open("ab") as log:
            self.master = subprocess.Popen([str(master), *self._options], stdout=log, stderr=log)
        end_s = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            assert self.master.poll() is None, self._log.read_text()
            assert time.monotonic() < end_s, "mooncake_master does not listen"
            time.sleep(0.02)

    def kill_master(self) -> None:
        self.master.kill()
        self.master.wait(START_DEADLINE_S)

    def store(self, layout: BlockLayout, writer_id: str) -> MooncakeStore:
        """The node `writer_id`; a new one where it was closed."""
        store = self._stores.get((layout, writer_id))
        if store is None or store.closed:
            store = MooncakeStore(self.config, layout, writer_id=writer_id, io_threads=3)
            self._stores[layout, writer_id] = store
        return store

    def _answers(self) -> bool:
        try:
            socket.create_connection(self.config.master_address, 1.0).close()
        except OSError:
            return False
        return True


class MooncakeUnderTest:
    """As StoreUnderTest. Handles outlive it: the cluster closes them."""

    def __init__(self, cluster: MooncakeCluster, layout: BlockLayout) -> None:
        self.cluster = cluster
        self.layout = layout

    def open(self, writer_id: str = "writer") -> MooncakeStore:
        return self.cluster.store(self.layout, writer_id)

    def close(self) -> None:
        pass

    def flip_bit(self, location: BlockLocation, byte: int) -> None:
        self._flip(location, record_header_bytes(self.layout) + byte)

    def flip_header_bit(self, location: BlockLocation, byte: int) -> None:
        self._flip(location, byte)

    def lose(self, location: BlockLocation) -> None:
        force = True
        assert self.open().client.remove(_name(location), force) == 0

    def _flip(self, location: BlockLocation, byte: int) -> None:
        """In the memory where the object lies: all nodes are of this process."""
        (replica,) = self.open().client.batch_get_replica_desc([_name(location)])[_name(location)]
        address = replica.get_memory_descriptor().buffer_descriptor.buffer_address
        flipped = ctypes.c_uint8.from_address(address + byte)
        flipped.value ^= 4


def _name(location: BlockLocation) -> str:
    return f"{location.segment}.{location.offset}"


def _free_ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports

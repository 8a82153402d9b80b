"""A process that owns staging memory and does what it is told: the peer of staging and transport tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kvstore.checksum import checksum
from kvstore.job_token import JobToken
from kvstore.layout import BlockLayout
from kvstore.open_transport import TransportSpec, open_region_server
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.transport import RegionHandle
from kvstore.transport_config import TransportConfig
from tests.kvstore.stopped_process import stop_process

PROCESSES = multiprocessing.get_context("forkserver")
"""Each begins with these imported, which takes seconds where a processor is emulated; what is not there is
left out."""
PROCESSES.set_forkserver_preload([__name__, "kvstore.verbs_server"])
ANSWER_DEADLINE_S = 60.0
TOKEN = JobToken(b"the token of the transport tests")
SHM = TransportSpec(TransportConfig("shm", "127.0.0.1", None, None, None), TOKEN)
TCP = TransportSpec(TransportConfig("tcp", "127.0.0.1", None, None, None), TOKEN)
NIXL = TransportSpec(TransportConfig("nixl", "127.0.0.1", None, None, None), TOKEN)
VERBS = TransportSpec(TransportConfig("verbs", "127.0.0.1", None, None, None), TOKEN)


def skip_without_nixl() -> None:
    """The tests that need it are told of as not run."""
    if not any(find_spec(package) for package in ("nixl", "nixl_cu12")):
        pytest.skip("NOT TESTED: NIXL is not installed; scripts/setup test,nixl installs it (220 MB)")


class OwnerProcess:
    """Use as a context manager; killed at its end."""

    def __init__(self, layout: BlockLayout, num_slots: int, transport: TransportSpec = SHM) -> None:
        self._pipe, theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(
            target=_serve, args=[theirs, layout, num_slots, transport], daemon=True
        )

    def __enter__(self) -> OwnerProcess:
        self._process.start()
        self.handle: StagingHandle
        self.region: RegionHandle
        self.handle, self.region = self._answer()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to clean up."""
        self._process.kill()
        self._process.join(ANSWER_DEADLINE_S)
        assert not self._process.is_alive()

    def stop(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        assert self._process.pid is not None
        stop_process(self._process.pid)

    def go_on(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def fill(self, slot_id: int, value: int) -> None:
        self._pipe.send(("fill", slot_id, value))
        self._answer()

    def slot_checksum(self, slot_id: int) -> int:
        self._pipe.send(("checksum", slot_id, 0))
        return self._answer()

    def num_mappings(self) -> int:
        """How many processes of this machine map the memory."""
        mapped = 0
        for path in Path("/proc").glob("[0-9]*/maps"):
            try:
                mapped += self.handle.incarnation in path.read_text()
            except OSError:  # the process ended meanwhile
                continue
        return mapped

    def _answer(self):
        assert self._pipe.poll(ANSWER_DEADLINE_S), "the owner process does not answer"
        return self._pipe.recv()


def _serve(pipe: Connection, layout: BlockLayout, num_slots: int, transport: TransportSpec) -> None:
    memory = StagingMemory.create("owner", layout, num_slots)
    server = open_region_server(transport)
    pipe.send((memory.handle, server.register(memory)))
    while True:
        command, slot_id, value = pipe.recv()
        if command == "fill":
            memory.slot(slot_id)[:] = value
        pipe.send(checksum(memory.slot(slot_id)))

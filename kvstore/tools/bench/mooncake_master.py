"""A Mooncake master of our own on loopback, for as long as a comparison takes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from kvstore.errors import StoreError

START_DEADLINE_S = 15.0
STOP_DEADLINE_S = 5.0


def why_no_mooncake() -> str | None:
    """Why it cannot be compared with here; None where it can."""
    if find_spec("mooncake") is None:
        return "the package mooncake-transfer-engine-non-cuda is not installed"
    return None if _binary() else "mooncake is installed without its mooncake_master"


@contextmanager
def mooncake_master(*flags: str) -> Iterator[str]:
    """host:port of a running master. Raises StoreError where it does not answer in time."""
    binary = _binary()
    assert binary is not None
    rpc, metrics = _free_ports(2)
    address = f"127.0.0.1:{rpc}"
    command = [binary, f"-rpc_port={rpc}", f"-metrics_port={metrics}", "-rpc_address=127.0.0.1", *flags]
    master = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_answer(master, ("127.0.0.1", rpc))
        yield address
    finally:
        master.terminate()
        try:
            master.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait(STOP_DEADLINE_S)


def _binary() -> str | None:
    """Its wheel puts it beside the interpreter."""
    beside = Path(sys.executable).parent / "mooncake_master"
    return str(beside) if beside.exists() else shutil.which("mooncake_master")


def _await_answer(master: subprocess.Popen[bytes], address: tuple[str, int]) -> None:
    deadline_s = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            socket.create_connection(address, 1.0).close()
            return
        except OSError as error:
            if master.poll() is not None or time.monotonic() >= deadline_s:
                raise StoreError(f"mooncake_master does not answer at {address[1]}: {error}") from error
            time.sleep(0.05)


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()

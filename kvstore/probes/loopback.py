"""What TCP carries within this host with nothing on top: bytes of one memory into another."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import numpy as np

from kvstore.probes.finding import Finding, Verdict
from kvstore.transport import Bytes

_LOOK_BYTES = 32 << 20
_SECONDS = 0.5
_DEADLINE_S = 30.0
_HEAD_BYTES = 8


class LoopbackServer:
    """Takes what clients send, one client at a time, on a thread: into `nbytes` of memory, front to back."""

    def __init__(self, nbytes: int) -> None:
        self._memory = np.zeros(nbytes, np.uint8).data
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_DEADLINE_S)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                self._take(self._listener.accept()[0])

    def _take(self, sock: socket.socket) -> None:
        """Put down what is announced, and say when all of it is there, until the client goes."""
        start = 0
        with sock:
            while head := sock.recv(_HEAD_BYTES, socket.MSG_WAITALL):
                nbytes = int.from_bytes(head)
                start = 0 if start + nbytes > len(self._memory) else start
                end = start + nbytes
                while start < end:
                    num_bytes = sock.recv_into(self._memory[start:end], 0, socket.MSG_WAITALL)
                    if not num_bytes:
                        return
                    start += num_bytes
                sock.sendall(b"+")


class Loopback:
    """A connection to a LoopbackServer of this host. Use as a context manager, inside the server's."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _DEADLINE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def send(self, memory: Bytes) -> float:
        """Seconds until all of it is at the other end. Raises OSError, also where nothing moves for long."""
        started_s = time.perf_counter()
        self._socket.sendall(memory.nbytes.to_bytes(_HEAD_BYTES))
        self._socket.sendall(memory.data)
        if not self._socket.recv(1):
            raise ConnectionError("the other end of the loopback is gone")
        return time.perf_counter() - started_s


def probe_loopback() -> Sequence[Finding]:
    """Its rate, in bytes per second."""
    memory = np.ones(_LOOK_BYTES, np.uint8)
    rates: list[float] = []
    with LoopbackServer(_LOOK_BYTES) as server, Loopback(server.port) as loopback:
        loopback.send(memory)
        end_s = time.perf_counter() + _SECONDS
        while not rates or time.perf_counter() < end_s:
            rates.append(memory.nbytes / loopback.send(memory))
    rate = max(rates)
    told = f"TCP carries {rate / 1e9:.1f} GB/s within this host"
    return [Finding("loopback", Verdict.OK, told, figures={"tcp_bytes_per_s": rate})]

"""What TCP carries within this host with nothing on top."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import Self

import numpy as np

from kvstore.probes.finding import Finding, Verdict

PIECE_BYTES = 1 << 20
_SECONDS = 0.5
_DEADLINE_S = 30.0


class Loopback:
    """A connected pair of TCP sockets; at the other end a thread fills one buffer again and again."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._socket = socket.create_connection(listener.getsockname(), _DEADLINE_S)
            self._thread = threading.Thread(target=_serve, args=[listener.accept()[0]], daemon=True)
        self._thread.start()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._piece = np.ones(PIECE_BYTES, np.uint8).data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
        self._thread.join(_DEADLINE_S)

    def send(self, nbytes: int) -> float:
        """Seconds until the other end has `nbytes`, a multiple of PIECE_BYTES, in its memory."""
        started_s = time.perf_counter()
        self._socket.sendall(nbytes.to_bytes(8))
        for _ in range(nbytes // PIECE_BYTES):
            self._socket.sendall(self._piece)
        if not self._socket.recv(1):
            raise ConnectionError("the other end of the loopback is gone")
        return time.perf_counter() - started_s


def probe_loopback() -> Sequence[Finding]:
    """Its rate, in bytes per second."""
    rates, nbytes = [], 32 * PIECE_BYTES
    with Loopback() as loopback:
        loopback.send(nbytes)
        end_s = time.perf_counter() + _SECONDS
        while time.perf_counter() < end_s:
            rates.append(nbytes / loopback.send(nbytes))
    rate = max(rates)
    told = f"TCP carries {rate / 1e9:.1f} GB/s within this host"
    return [Finding("loopback", Verdict.OK, told, figures={"tcp_bytes_per_s": rate})]


def _serve(sock: socket.socket) -> None:
    """Take what is announced into the same buffer, and say when it is there, until the caller goes."""
    memory = np.empty(PIECE_BYTES, np.uint8).data
    with sock:
        while head := sock.recv(8, socket.MSG_WAITALL):
            for _ in range(int.from_bytes(head) // PIECE_BYTES):
                sock.recv_into(memory, PIECE_BYTES, socket.MSG_WAITALL)
            sock.sendall(b"+")

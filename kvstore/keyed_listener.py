"""Listens on one address and serves each connection of the job on a thread of its own.

Decides whom it listens to and for how long before the job's token is proven: HANDSHAKE_DEADLINE_S, at most
MAX_STRANGERS at once, of whom the oldest makes room. It does not know what is asked after that.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from kvstore.errors import StagingError
from kvstore.job_token import JobToken
from kvstore.keyed_handshake import Dialect, HandshakeError, admit
from kvstore.listen_address import listen_address
from kvstore.tcp_address import TcpAddress
from kvstore.tcp_channel import ChannelError, TcpChannel

logger = logging.getLogger(__name__)

MAX_STRANGERS = 64
HANDSHAKE_DEADLINE_S = 5.0
_BACKLOG = 256
_CLOSE_DEADLINE_S = 10.0
_PAUSE_S = 0.1
"""Before accepting is tried again, when the process has no descriptor left for a connection."""


class KeyedListener:
    """One listening socket and the threads of its connections."""

    def __init__(
        self, token: JobToken, serve: Callable[[TcpChannel], None], *, listen: str, port: int = 0
    ) -> None:
        """Take an address, at a free port if `port` is 0; raises StagingError if it cannot be.

        After `start`, `serve` is called with each connection, on its thread. It calls `admit` first, and when
        it returns the connection is closed.
        """
        self._token = token
        self._serve = serve
        self._listener = _listen(listen, port)
        ip, port = self._listener.getsockname()[:2]
        self.address = TcpAddress(ip, port)
        self._strangers: dict[TcpChannel, None] = {}
        self._threads: dict[TcpChannel, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name=f"accept-{port}", daemon=True)

    def start(self) -> None:
        """Begin to take connections."""
        self._accepting.start()

    def admit(self, channel: TcpChannel, dialect: Dialect, judge: Callable[[bytes], bytes]) -> None:
        """The server's part of the handshake. Raises HandshakeError or ChannelError."""
        admit(channel, self._token, dialect, judge, HANDSHAKE_DEADLINE_S)
        with self._lock:
            self._strangers.pop(channel, None)

    def close(self) -> bool:
        """End all connections, and wait for their threads; have they all ended? Idempotent."""
        with self._lock:
            self._closed.set()
            threads = dict(self._threads)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for channel in threads:
            channel.shut()
        end_s = time.monotonic() + _CLOSE_DEADLINE_S
        for thread in (self._accepting, *threads.values()):
            thread.join(max(0.0, end_s - time.monotonic()))
        return not any(thread.is_alive() for thread in threads.values())

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:  # closed; or no descriptor is left
                if not self._closed.wait(_PAUSE_S):
                    logger.warning("cannot take a connection to %s: %s", self.address, error)
                continue
            try:
                self._let_in(sock)
            except (OSError, RuntimeError) as error:  # it is gone already; or no thread is to be had
                sock.close()
                logger.warning("cannot serve a connection to %s: %s", self.address, error)

    def _let_in(self, sock: socket.socket) -> None:
        channel = TcpChannel(sock)
        thread = threading.Thread(target=self._run, args=[channel], name="keyed-serve", daemon=True)
        with self._lock:
            if self._closed.is_set():
                channel.close()
                return
            if len(self._strangers) >= MAX_STRANGERS:
                # A client of the job is through within milliseconds: the oldest is none.
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.shut()
            thread.start()
            self._strangers[channel] = None
            self._threads[channel] = thread

    def _run(self, channel: TcpChannel) -> None:
        """One connection from its first byte to its last."""
        try:
            self._serve(channel)
        except HandshakeError as error:
            logger.info("closed a connection to %s: %s", self.address, error)
        except (ChannelError, OSError) as error:
            logger.debug("a connection to %s ended: %s", self.address, error)
            channel.abort()
        finally:
            with self._lock:
                self._strangers.pop(channel, None)
                self._threads.pop(channel, None)
            channel.close()


def _listen(host: str, port: int) -> socket.socket:
    """Listen on exactly one address of this machine."""
    family, ip = listen_address(host)
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StagingError(f"cannot serve staging memory at transport.listen={host!r}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StagingError(
            f"cannot serve staging memory at transport.listen={host!r}, port {port}: {error}"
        ) from error
    return listener

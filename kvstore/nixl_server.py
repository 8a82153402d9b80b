"""Lets peers read and write the memories of this process through NIXL: the passive end of NixlTransport.

Decides who gets to know its agent. Each connection of kvstore.keyed_listener is a client that has shown the
job's token; it stays open for as long as the client has an agent that knows this one, so that either side is
told at once when the other dies. UCX's own thread answers, whatever Python does.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from kvstore.errors import StagingError, TransportUnavailable
from kvstore.job_token import JobToken
from kvstore.keyed_listener import HANDSHAKE_DEADLINE_S, KeyedListener
from kvstore.nixl_connection import SCHEME
from kvstore.nixl_handshake import NIXL_DIALECT, Answer, Status
from kvstore.nixl_library import NixlAgent, NixlError
from kvstore.staging import StagingMemory
from kvstore.tcp_channel import TcpChannel
from kvstore.tcp_wire import region_id
from kvstore.transport import RegionHandle


@dataclass(frozen=True, slots=True)
class _Region:
    """What a client is told of a memory that it may reach."""

    address: int
    metadata: bytes


class NixlServer:
    """A RegionServer on one network device. `close` it before the memories it serves."""

    def __init__(self, token: JobToken, device: str, *, listen: str = "127.0.0.1") -> None:
        """Tell of its agent at one address of this host. Raises StagingError or TransportUnavailable."""
        self._regions: dict[bytes, _Region] = {}
        self._lock = threading.Lock()
        try:
            self._agent = NixlAgent(device, serves=True)
        except NixlError as error:
            raise TransportUnavailable(str(error)) from error
        try:
            self._listener = KeyedListener(token, self._serve, listen=listen)
        except BaseException:
            self._agent.close()
            raise
        self.address = self._listener.address
        self._listener.start()

    def register(self, staging: StagingMemory) -> RegionHandle:
        handle = staging.handle
        with self._lock:
            try:
                address = self._agent.register(staging.buffer)
                self._regions[region_id(handle.incarnation)] = _Region(address, self._agent.metadata())
            except NixlError as error:
                raise StagingError(f"staging memory of {handle.node_id} cannot be served: {error}") from error
        return RegionHandle(handle.node_id, handle.incarnation, handle.nbytes, f"{SCHEME}{self.address}")

    def close(self) -> None:
        with self._lock:
            self._regions.clear()
        self._listener.close()
        self._agent.close()

    def _serve(self, channel: TcpChannel) -> None:
        """One connection from its first byte to its last, on a thread of its own."""
        region: _Region | None = None

        def judge(wish: bytes) -> bytes:
            nonlocal region
            with self._lock:
                region = self._regions.get(wish)
            if region is None:
                return Answer(Status.OTHER_INCARNATION, 0, 0).pack()
            return Answer(Status.OK, region.address, len(region.metadata)).pack()

        self._listener.admit(channel, NIXL_DIALECT, judge)
        if region is None:
            return
        channel.send([memoryview(region.metadata)], time.monotonic() + HANDSHAKE_DEADLINE_S)
        channel.wait_for_bytes()

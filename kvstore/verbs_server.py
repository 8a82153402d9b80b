"""Lets peers read and write the memories of this process by RDMA: the passive end of VerbsTransport.

Decides who gets a queue pair. Each connection of kvstore.keyed_listener stands for one: it is made when the
client has shown the job's token, and closed when the client asks for that or the connection ends. What goes
through it costs this process nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from kvstore.errors import StagingError
from kvstore.job_token import JobToken
from kvstore.keyed_listener import KeyedListener
from kvstore.staging import StagingMemory
from kvstore.tcp_channel import TcpChannel
from kvstore.tcp_wire import region_id
from kvstore.traffic import CLASS_TABLE, ClassSettings, TrafficClass
from kvstore.transport import RegionHandle
from kvstore.verbs_connection import FENCE, FENCE_S, SCHEME
from kvstore.verbs_device import REMOTE, MemoryRefused, Registration, VerbsDevice
from kvstore.verbs_devices import PortChoice
from kvstore.verbs_handshake import VERBS_DIALECT, Answer, Status, Wish
from kvstore.verbs_library import VerbsError
from kvstore.verbs_queue_pair import QueuePair

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Region:
    """A memory that peers may reach."""

    registrations: tuple[Registration, ...]
    """With each device."""
    nbytes: int


class VerbsServer:
    """A RegionServer on a host's rails: ports of RDMA devices. `close` it before the memories it serves."""

    def __init__(
        self,
        token: JobToken,
        rails: Sequence[PortChoice],
        *,
        listen: str = "127.0.0.1",
        classes: Mapping[TrafficClass, ClassSettings] = CLASS_TABLE,
    ) -> None:
        """Agree on queue pairs at one address of this host. Raises StagingError or TransportUnavailable."""
        self._classes = classes
        self._regions: dict[bytes, _Region] = {}
        self._lock = threading.Lock()
        with ExitStack() as opened:
            self._devices = [opened.enter_context(closing(VerbsDevice(choice))) for choice in rails]
            self._listener = KeyedListener(token, self._serve, listen=listen)
            opened.pop_all()
        self.address = self._listener.address
        self._listener.start()

    def register(self, staging: StagingMemory) -> RegionHandle:
        handle, memory = staging.handle, staging.buffer
        address = int(memory.__array_interface__["data"][0])
        try:
            registrations = tuple(device.register(address, memory.nbytes, REMOTE) for device in self._devices)
        except MemoryRefused as error:
            raise StagingError(f"staging memory of {handle.node_id} cannot be served: {error}") from error
        with self._lock:
            self._regions[region_id(handle.incarnation)] = _Region(registrations, memory.nbytes)
        return RegionHandle(handle.node_id, handle.incarnation, handle.nbytes, f"{SCHEME}{self.address}")

    def close(self) -> None:
        with self._lock:
            self._regions.clear()
        if self._listener.close():
            for device in self._devices:
                device.close()
        else:
            logger.warning("a connection to %s does not end; its devices stay open", self.address)

    def _serve(self, channel: TcpChannel) -> None:
        """One connection from its first byte to its last, on a thread of its own."""
        try:
            self._serve_pair(channel)
        except VerbsError as error:  # the client is not told that its queue pair is closed
            logger.warning("a queue pair of %s did not end as it should: %s", self.address, error)

    def _serve_pair(self, channel: TcpChannel) -> None:
        pair: QueuePair | None = None

        def judge(wish: bytes) -> bytes:
            nonlocal pair
            asked = Wish.unpack(wish)
            with self._lock:
                region = self._regions.get(asked.region_id)
            if region is None:
                return Answer.refusal(Status.OTHER_INCARNATION).pack()
            rail = asked.rail % len(self._devices)
            try:
                pair = QueuePair(self._devices[rail])
                path = pair.connect(asked.end, self._classes[asked.traffic_class])
            except VerbsError as error:
                logger.warning("cannot make a queue pair for a client of %s: %s", self.address, error)
                return Answer.refusal(Status.CANNOT_CONNECT).pack()
            memory = region.registrations[rail]
            return Answer(Status.OK, path, memory.rkey, memory.address, region.nbytes, pair.end).pack()

        try:
            self._listener.admit(channel, VERBS_DIALECT, judge)
            if pair is None:
                return
            channel.wait_for_bytes()
        finally:
            if pair is not None:
                pair.close()
        _confirm(channel)


def _confirm(channel: TcpChannel) -> None:
    """Tell a client that asked for it that its queue pair is closed."""
    asked, end_s = bytearray(len(FENCE)), time.monotonic() + FENCE_S
    channel.receive([memoryview(asked)], end_s)
    channel.send([memoryview(FENCE)], end_s)

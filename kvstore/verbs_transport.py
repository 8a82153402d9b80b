"""Transport over RDMA: one-sided READs and WRITEs to peers that serve their memory with a VerbsServer.

Decides what a failure is called. A call's lists become work requests at once (kvstore.verbs_requests), on a
queue pair that is this call's alone until it returns (kvstore.connection_pool). The peer's processor does
nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from kvstore.connection_pool import ConnectionPool
from kvstore.errors import LateWrite, TransferError
from kvstore.job_token import JobToken
from kvstore.tcp_channel import ChannelError
from kvstore.traffic import CLASS_TABLE, ClassSettings, TrafficClass
from kvstore.transport import RegionHandle, TransferList, require_inside
from kvstore.verbs_connection import FENCE_S, VerbsConnection, VerbsConnector
from kvstore.verbs_device import VerbsDevice
from kvstore.verbs_devices import PortChoice
from kvstore.verbs_library import VerbsError
from kvstore.verbs_memory import RegisteredRows
from kvstore.verbs_requests import Opcode

logger = logging.getLogger(__name__)

_FENCE_SHARE = 0.2
"""Of a call's time, FENCE_S at most, that is kept for ending it at both ends if it fails."""
_LONGEST_CALL_S = 3600.0


class VerbsTransport:
    """A Transport for regions that a VerbsServer registered. Each class has queue pairs of its own."""

    def __init__(
        self,
        token: JobToken,
        choice: PortChoice,
        classes: Mapping[TrafficClass, ClassSettings] = CLASS_TABLE,
        *,
        rail: int = 0,
    ) -> None:
        """On one port; `rail` is which of a peer's is to be reached. Raises TransportUnavailable."""
        self._device = VerbsDevice(choice)
        self._rows = RegisteredRows(self._device)
        self._connections = ConnectionPool("verbs", VerbsConnector(token, self._device, classes, rail).open)

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(Opcode.READ, region, lists, traffic_class, deadline_s)

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(Opcode.WRITE, region, lists, traffic_class, deadline_s)

    def close(self) -> None:
        if self._connections.close():
            self._rows.close()
            self._device.close()
        else:
            logger.warning("a call over the verbs transport does not end; its device stays open")

    def _move(
        self,
        opcode: Opcode,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        given_s = min(deadline_s, _LONGEST_CALL_S)
        end_s = time.monotonic() + given_s - min(FENCE_S, given_s * _FENCE_SHARE)
        require_inside(region, lists)
        full = [moves for moves in lists if moves.sizes.any()]
        if not full:
            return
        connection: VerbsConnection | None = None
        try:
            with self._connections.lend(region, traffic_class, end_s) as connection:
                pieces = self._rows.pieces(full)
                connection.move(opcode, pieces, end_s)
        except (ChannelError, VerbsError) as error:
            reason = self._connections.reason(error, region, sum(map(len, lists)), deadline_s)
            if opcode is Opcode.WRITE and connection is not None and not connection.fenced:
                raise LateWrite(f"{reason}; it does not answer, and bytes may still arrive there") from error
            raise TransferError(reason) from error

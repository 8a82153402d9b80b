"""Transport through NIXL and UCX, for fabrics that have no RC verbs, to peers that serve their memory with a
NixlServer.

Decides what a failure is called. NIXL has no traffic class per flow: a call's class only chooses among
connections, and marks nothing. It cannot fence either, so a WRITE that fails is always a LateWrite.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvstore.connection_pool import ConnectionPool
from kvstore.errors import LateWrite, TransferError
from kvstore.job_token import JobToken
from kvstore.nixl_connection import NixlConnection, NixlConnector
from kvstore.nixl_library import Direction, NixlError
from kvstore.tcp_channel import ChannelError
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle, TransferList, require_inside

_LONGEST_CALL_S = 3600.0


class NixlTransport:
    """A Transport for regions that a NixlServer registered."""

    def __init__(self, token: JobToken, device: str) -> None:
        """On the network device that UCX calls so."""
        self._connector = NixlConnector(token, device)
        self._connections = ConnectionPool("NIXL", self._connector.open)

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(Direction.READ, region, lists, traffic_class, deadline_s)

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(Direction.WRITE, region, lists, traffic_class, deadline_s)

    @property
    def num_unfinished(self) -> int:
        """Transfers of calls that failed, which go on without anybody waiting for them."""
        return self._connector.num_unfinished

    def close(self) -> None:
        self._connections.close()
        self._connector.close()

    def _move(
        self,
        direction: Direction,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        end_s = time.monotonic() + min(deadline_s, _LONGEST_CALL_S)
        require_inside(region, lists)
        if not any(moves.nbytes for moves in lists):
            return
        connection: NixlConnection | None = None
        try:
            with self._connections.lend(region, traffic_class, end_s) as connection:
                connection.move(direction, lists, end_s)
        except (ChannelError, NixlError) as error:
            reason = self._connections.reason(error, region, sum(map(len, lists)), deadline_s)
            if direction is Direction.WRITE and connection is not None:
                raise LateWrite(f"{reason}; bytes of it may still arrive there") from error
            raise TransferError(reason) from error

"""A Transport whose moves pass the compute NICs of both ends, where those have limited rates.

Bytes are moved first and held back until both NICs would have carried them: nobody is told of them earlier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from kvstore.errors import TransferError
from kvstore.limiter import Lane, Nic, carry
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle, TransferList, Transport


class LimitedTransport:
    """A Transport around `transport`. `peers`: by node id, the NIC by which that node is reached."""

    def __init__(self, transport: Transport, own: Nic, peers: Mapping[str, Nic]) -> None:
        self._transport = transport
        self._own = own
        self._peers = peers

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        since_s = time.monotonic()
        self._transport.read(region, lists, traffic_class, deadline_s)
        lanes = [self._own.inbound, *self._peer_lanes(region, lambda nic: nic.outbound)]
        _pass(lanes, lists, traffic_class, since_s, deadline_s)

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        since_s = time.monotonic()
        self._transport.write(region, lists, traffic_class, deadline_s)
        lanes = [self._own.outbound, *self._peer_lanes(region, lambda nic: nic.inbound)]
        _pass(lanes, lists, traffic_class, since_s, deadline_s)

    def close(self) -> None:
        self._transport.close()

    def _peer_lanes(self, region: RegionHandle, lane: Callable[[Nic], Lane]) -> list[Lane]:
        nic = self._peers.get(region.node_id)
        return [] if nic is None else [lane(nic)]


def _pass(
    lanes: Sequence[Lane],
    lists: Sequence[TransferList],
    traffic_class: TrafficClass,
    since_s: float,
    deadline_s: float,
) -> None:
    nbytes = sum(moves.nbytes for moves in lists)
    carried = carry(lanes, nbytes, traffic_class, since_s=since_s, end_s=since_s + deadline_s)
    if carried < nbytes:
        raise TransferError(
            f"the compute NICs would have carried {carried} of {nbytes} bytes in {deadline_s} s"
        )

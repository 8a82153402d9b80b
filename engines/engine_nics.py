"""The compute NICs that an engine's bytes pass, on a machine that plays several nodes.

Engines of two nodes meet on the same rail: an engine reaches another node through that node's NIC of its own
number, as networks of GPU nodes are wired. Host-device copies cost the own NIC both ways where the
cluster makes them by a loop through it (DualPath, arXiv 2602.21548, section 5).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from engines.types import NodeId
from kvstore.errors import TransferError
from kvstore.limiter import LimiterHandle, Nic, NodeLimiter, carry
from kvstore.traffic import TrafficClass


@dataclass(frozen=True, slots=True)
class NicsHandle:
    """What an engine needs to share its cluster's NICs; picklable."""

    node_id: NodeId
    rail: int
    """The engine's number in its node."""
    limiters: Mapping[NodeId, LimiterHandle]
    """Of every node."""
    copies_pass: bool
    """Whether host-device copies pass the compute NIC."""


class EngineNics:
    """An engine's own compute NIC and its peers'."""

    def __init__(self, handle: NicsHandle) -> None:
        """Raises StagingError if a node is gone."""
        self._limiters = {node: NodeLimiter.attach(each) for node, each in handle.limiters.items()}
        self.own = self._limiters[handle.node_id].cnics[handle.rail]
        self.peers: dict[str, Nic] = {
            node: limiter.cnics[handle.rail % len(limiter.cnics)] for node, limiter in self._limiters.items()
        }
        self._copies_pass = handle.copies_pass
        self._rail = handle.rail

    def learn(self, node: NodeId, handle: LimiterHandle) -> None:
        """Another node has begun anew, and with it its NICs."""
        before, self._limiters[node] = self._limiters.get(node), NodeLimiter.attach(handle)
        cnics = self._limiters[node].cnics
        self.peers[node] = cnics[self._rail % len(cnics)]
        if before is not None:
            before.close()

    def copy(self, nbytes: int, deadline_s: float) -> None:
        """Return when the NIC has carried a host-device copy; TransferError after the deadline."""
        if self._copies_pass:
            self._loop(nbytes, TrafficClass.KV, deadline_s)

    def collective(self, nbytes: int, deadline_s: float) -> None:
        """Return when the NIC has sent and received `nbytes` of MODEL traffic; TransferError as above."""
        self._loop(nbytes, TrafficClass.MODEL, deadline_s)

    def close(self) -> None:
        for limiter in self._limiters.values():
            limiter.close()

    def _loop(self, nbytes: int, traffic_class: TrafficClass, deadline_s: float) -> None:
        since_s = time.monotonic()
        lanes = [self.own.inbound, self.own.outbound]
        carried = carry(lanes, nbytes, traffic_class, since_s=since_s, end_s=since_s + deadline_s)
        if carried < nbytes:
            raise TransferError(
                f"the compute NIC would have carried {carried} of {nbytes} bytes in {deadline_s} s"
            )

"""An open RDMA device: what queue pairs and registered memory are made from, and what it can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvstore.errors import TransferError, TransportUnavailable
from kvstore.verbs_devices import PortChoice
from kvstore.verbs_library import MR, PD, Context, VerbsError, enums, verbs_errors

_MAX_READS = 16
"""RDMA READs under way on one queue pair that are asked for; the device may take fewer."""
_MAX_PIECES = 16
LOCAL_READ = 0
LOCAL_WRITE = enums.IBV_ACCESS_LOCAL_WRITE
REMOTE = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_READ | enums.IBV_ACCESS_REMOTE_WRITE


class MemoryRefused(TransferError):
    """The device does not take this memory; nothing moved."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Of one queue pair."""

    reads_answered: int
    """RDMA READs of the peer that are answered at once."""
    reads_asked: int
    """Own RDMA READs under way at once."""
    max_pieces: int
    """Pieces of memory that one work request may name."""
    lid: int
    """The port's address on an InfiniBand subnet."""


class VerbsDevice:
    """One port of a device, by one GID. `close` it after everything that was made from it."""

    def __init__(self, choice: PortChoice) -> None:
        """Raises TransportUnavailable if the device cannot be opened."""
        self.choice = choice
        try:
            with verbs_errors(f"opening RDMA device {choice.port.device}"):
                self.context = Context(name=choice.port.device)
                self.pd = PD(self.context)
                self.limits = _limits(self.context, choice.port.port)
        except VerbsError as error:
            raise TransportUnavailable(str(error)) from error

    def register(self, address: int, nbytes: int, access: int) -> Any:
        """A registration (`lkey`, `rkey`) that lives as long as the object that is returned.

        Raises MemoryRefused.
        """
        try:
            with verbs_errors(f"registering {nbytes} bytes with {self.choice.port.device}"):
                return MR(self.pd, nbytes, access, address=address)
        except VerbsError as error:
            raise MemoryRefused(f"{error}; is `ulimit -l` large enough, and is it host memory?") from error

    def close(self) -> None:
        """Idempotent."""
        self.context.close()


def _limits(context: Any, port: int) -> DeviceLimits:
    device = context.query_device()
    read_pieces = device.max_sge_rd or device.max_sge
    return DeviceLimits(
        reads_answered=min(_MAX_READS, device.max_qp_rd_atom),
        reads_asked=min(_MAX_READS, device.max_qp_init_rd_atom),
        max_pieces=min(_MAX_PIECES, device.max_sge, read_pieces),
        lid=context.query_port(port).lid,
    )

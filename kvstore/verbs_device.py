"""An open RDMA device: what queue pairs and registered memory are made from, and what it can take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from kvstore.cuda_dmabuf import Dmabuf, export_dmabuf
from kvstore.errors import TransferError, TransportUnavailable
from kvstore.verbs_devices import PortChoice
from kvstore.verbs_library import MR, PD, Context, DmaBufMR, VerbsError, enums, verbs_errors

_MAX_READS = 16
"""RDMA READs under way on one queue pair that are asked for; the device may take fewer."""
_MAX_PIECES = 16
LOCAL_READ = 0
LOCAL_WRITE = enums.IBV_ACCESS_LOCAL_WRITE
REMOTE = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_READ | enums.IBV_ACCESS_REMOTE_WRITE


class MemoryRefused(TransferError):
    """The device does not take this memory; nothing moved."""


class Registration:
    """Memory that a device may use, for as long as this object lives."""

    def __init__(self, address: int, mr: Any) -> None:
        self.address = address
        """By which work requests name its first byte."""
        self.lkey: int = mr.lkey
        self.rkey: int = mr.rkey
        self._mr = mr


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

    def register(self, address: int, nbytes: int, access: int) -> Registration:
        """Let the device use memory of the host, or of a GPU whose memory it can reach. Raises MemoryRefused.

        Memory of a GPU is taken by its address where nvidia-peermem is loaded, else as a dma-buf.
        """
        try:
            with verbs_errors(f"registering {nbytes} bytes with {self.choice.port.device}"):
                return Registration(address, MR(self.pd, nbytes, access, address=address))
        except VerbsError as error:
            exported = export_dmabuf(address)
            if exported is None:
                raise MemoryRefused(f"{error}; is `ulimit -l` large enough?") from error
            return self._register_dmabuf(exported, nbytes, access)

    def _register_dmabuf(self, exported: Dmabuf, nbytes: int, access: int) -> Registration:
        if exported.fd is None:
            raise MemoryRefused(
                f"{nbytes} bytes of a GPU cannot be registered with {self.choice.port.device}: "
                f"nvidia-peermem is not loaded, and the driver gives no dma-buf ({exported.why_none}); "
                "`modprobe nvidia-peermem`, or use cluster.h2d=copy"
            )
        try:
            with verbs_errors(f"registering a dma-buf of a GPU with {self.choice.port.device}"):
                mr = DmaBufMR(self.pd, nbytes, access, dmabuf=exported.fd, offset=exported.offset)
        except VerbsError as error:
            raise MemoryRefused(
                f"{error}; this device does not take memory of a GPU: use cluster.h2d=copy"
            ) from error
        finally:
            os.close(exported.fd)
        return Registration(exported.offset, mr)  # pyverbs gives it addresses from its offset on

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

"""Moves every byte that goes in or out of an engine, and counts it by hop and class.

An engine owns one: host-device copies between its HBM and its node's staging memory, and one-sided moves
to and from other nodes' staging memory. Storage I/O is the node agent's (kvstore.storage_traffic), which
counts in the same way. Nothing here decides what to move. Where the cluster's NICs have rates, every move
takes as long as they let it.

    layer of a slot in staging memory  [block_tokens, token_elements] of the model's dtype, one address
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from engines.engine_nics import EngineNics
from engines.model.runner import ModelRunner
from kvstore.checksum import checksum
from kvstore.errors import TransferError
from kvstore.limited_transport import LimitedTransport
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.traffic_ledger import ENGINE_HOPS, Hop, TrafficLedger
from kvstore.transport import RegionHandle, TransferOp, Transport

logger = logging.getLogger(__name__)


_COPY_DEADLINE_S = 600.0
"""Longest a host-device copy may wait for the compute NIC."""
_COPIES = (Hop.HOST_TO_DEVICE, Hop.DEVICE_TO_HOST)


class TrafficManager:
    """One engine's data paths over its node's staging memory and a transport. Thread-safe."""

    def __init__(
        self,
        staging: StagingMemory,
        transport: Transport,
        dtype: torch.dtype,
        device: torch.device,
        nics: EngineNics | None = None,
    ) -> None:
        """`nics`: those of limited rate that the bytes pass; `transport` knows them. None: no limit."""
        self.staging = staging
        self.ledger = TrafficLedger()
        self._nics = nics
        self._transport = transport
        self._layout = staging.layout
        self._device = device
        self.pinned = _pin(staging, device)
        """Whether the staging memory is page-locked, so that copies to and from a GPU are asynchronous."""
        elements = torch.from_numpy(staging.buffer).view(dtype)
        slot_elements = self._layout.slot_bytes // dtype.itemsize
        used = self._layout.full_block_bytes // dtype.itemsize
        first = staging.offset(0) // dtype.itemsize
        slots = elements[first:].view(staging.num_slots, slot_elements)[:, :used]
        # [num_slots, layers, block_tokens, token_elements]
        self._slots = slots.unflatten(1, (self._layout.num_layers, self._layout.block_tokens, -1))

    def load_layer(self, destination: Tensor, slots: Sequence[int], layer: int) -> None:
        """Copy `layer` of whole blocks `slots` into `destination` [blocks * block_tokens, elements]."""
        if not slots:
            return
        blocks = destination.view(len(slots), self._layout.block_tokens, -1)
        if self._device.type == "cpu":
            torch.index_select(self._slots[:, layer], 0, torch.tensor(slots), out=blocks)
        else:
            for block, slot in zip(blocks, slots, strict=True):
                block.copy_(self._slots[slot, layer], non_blocking=self.pinned)
        self._count(Hop.HOST_TO_DEVICE, len(slots) * self._layout.layer_block_bytes)

    def load_block(self, destination: Tensor, slot: int) -> None:
        """Copy a Full Block into `destination` [layers, block_tokens, elements]."""
        destination.copy_(self._slots[slot], non_blocking=self.pinned)
        self._count(Hop.HOST_TO_DEVICE, self._layout.full_block_bytes)

    def wait_for_copies(self) -> None:
        """Return when every copy this thread began is done; on a CPU device they always are."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def store_block(self, source: Tensor, slot: int) -> None:
        """Copy `source` [layers, block_tokens, elements] into a slot of the own node, and wait."""
        self._slots[slot].copy_(source)
        self._count(Hop.DEVICE_TO_HOST, self._layout.full_block_bytes)

    def to_host(self, source: Tensor) -> Tensor:
        """`source` in host memory, ready to be sent; on a CPU device it is `source` itself."""
        if self._device.type == "cpu":
            return source
        self._count(Hop.DEVICE_TO_HOST, source.nbytes)
        return source.cpu()

    def send(self, region: RegionHandle, ops: Sequence[TransferOp], deadline_s: float) -> None:
        """Write the ops' bytes into another node's staging memory."""
        self._transport.write(region, ops, TrafficClass.KV, deadline_s)
        self._count(Hop.ENGINE_TO_ENGINE, sum(op.local.nbytes for op in ops))

    def fetch(
        self,
        destination: Tensor,
        region: RegionHandle,
        offsets: Sequence[int],
        checksums: Sequence[int],
        deadline_s: float,
    ) -> None:
        """Read one layer of whole blocks, at `offsets` of another node's staging memory, into `destination`.

        It is [blocks * block_tokens, elements]. Raises TransferError if a layer's CRC32C is not the one of
        `checksums`: nobody else would see a bit that flipped on the way.
        """
        on_cpu = self._device.type == "cpu"
        host = destination if on_cpu else torch.empty_like(destination, device="cpu", pin_memory=True)
        parts = host.view(torch.uint8).view(len(offsets), -1).numpy()
        ops = [TransferOp(part, offset) for part, offset in zip(parts, offsets, strict=True)]
        self._transport.read(region, ops, TrafficClass.KV, deadline_s)
        self._count(Hop.ENGINE_TO_ENGINE, host.nbytes)
        for op, expected in zip(ops, checksums, strict=True):
            if checksum(op.local) != expected:
                raise TransferError(
                    f"KV fetched from byte {op.remote_offset} of {region.node_id}'s staging memory is not "
                    "what was read into it"
                )
        if not on_cpu:
            destination.copy_(host, non_blocking=True)
            self._count(Hop.HOST_TO_DEVICE, host.nbytes)

    def model_traffic(self, nbytes: int, deadline_s: float) -> None:
        """Account for `nbytes` that a collective sends and receives; return when the compute NIC let them by.

        Who makes collectives calls this; on real hardware it only counts. Raises TransferError after the
        deadline.
        """
        if self._nics is not None:
            self._nics.collective(nbytes, deadline_s)
        self.ledger.count(Hop.COLLECTIVE, TrafficClass.MODEL, nbytes)

    def by_hop(self) -> dict[str, int]:
        """Bytes moved so far by hop, all classes."""
        return self.ledger.by_hop(ENGINE_HOPS)

    def close(self) -> None:
        """Unlock the staging memory; all copies must be done. Idempotent."""
        if self.pinned:
            self.pinned = False
            torch.cuda.cudart().cudaHostUnregister(self.staging.buffer.ctypes.data)

    def _count(self, hop: Hop, nbytes: int) -> None:
        """Account for a move of KV that was made; a host-device copy waits here for the compute NIC."""
        if self._nics is not None and hop in _COPIES:
            self._nics.copy(nbytes, _COPY_DEADLINE_S)
        self.ledger.count(hop, TrafficClass.KV, nbytes)


def open_traffic_manager(
    staging: StagingHandle, transport: Transport, runner: ModelRunner, nics: EngineNics | None = None
) -> TrafficManager:
    """Map the node's staging memory for an engine that runs `runner`, and share `nics` if there are any."""
    if nics is not None:
        transport = LimitedTransport(transport, nics.own, nics.peers)
    return TrafficManager(StagingMemory.attach(staging), transport, runner.dtype, runner.device, nics)


def _pin(staging: StagingMemory, device: torch.device) -> bool:
    """Page-lock the staging memory for asynchronous copies; CPU devices need none.

    CUDA keeps a failure as the calling thread's last error and charges it to that thread's next kernel, so
    the call is made on a thread that ends here.
    """
    if device.type != "cuda":
        return False
    cudart, buffer = torch.cuda.cudart(), staging.buffer
    with ThreadPoolExecutor(1) as thread:
        error = thread.submit(cudart.cudaHostRegister, buffer.ctypes.data, buffer.nbytes, 0).result()
    if error != cudart.cudaError.success:
        logger.warning(
            "staging memory of %s cannot be page-locked, so copies to the GPU are slow: %s",
            staging.handle.node_id,
            cudart.cudaGetErrorString(error),
        )
    return bool(error == cudart.cudaError.success)

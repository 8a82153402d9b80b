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

import numpy as np
import torch
from torch import Tensor

from engines.engine_nics import EngineNics
from engines.loopback import Loopback
from engines.model.runner import ModelRunner
from engines.remote_blocks import RemoteBlocks
from engines.tensor_rows import TensorRows
from kvstore.checksum import Sums, checksum, checksums
from kvstore.errors import TransferError
from kvstore.limited_transport import LimitedTransport
from kvstore.pieces import copy_all
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.traffic_ledger import ENGINE_HOPS, Hop, TrafficLedger
from kvstore.transport import Offsets, RegionHandle, TransferList, Transport

logger = logging.getLogger(__name__)

_GATHER_BYTES = 64 << 10
"""Layer Blocks below this are put side by side before they go to a GPU: giving it a copy costs more."""


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
        own_region: RegionHandle | None = None,
    ) -> None:
        """`nics`: those of limited rate that the bytes pass; `transport` knows them. None: no limit.

        `own_region`: the node's memory as peers reach it, if host-device copies go that way too; None: the
        device's copy engines make them.
        """
        self.staging = staging
        self.ledger = TrafficLedger()
        self._nics = nics
        self.rows = TensorRows()
        self._loopback = None if own_region is None else Loopback(transport, own_region, self.rows)
        self._transport = transport
        self._layout = staging.layout
        # The layout works them out each time, and they are asked for many times a layer.
        self._layer_block_bytes = self._layout.layer_block_bytes
        self._slot_bytes = self._layout.slot_bytes
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

    def load_layer(self, destination: Tensor, slots: Offsets, layer: int) -> None:
        """Copy `layer` of whole blocks `slots` into `destination` [blocks * block_tokens, elements]."""
        if not len(slots):
            return
        blocks = destination.view(len(slots), self._layout.block_tokens, -1)
        if self._loopback is not None:
            step = self._layer_block_bytes
            rows = np.arange(len(slots), dtype=np.int64) * step
            self._loopback.load(blocks, rows, self._places(slots, layer), step, _COPY_DEADLINE_S)
        elif self._device.type == "cpu":
            self._gather(slots, layer, blocks)
        elif self._layer_block_bytes < _GATHER_BYTES:
            blocks.copy_(self._gather_pinned(slots, layer), non_blocking=True)
        else:
            for block, slot in zip(blocks, slots.tolist(), strict=True):
                block.copy_(self._slots[slot, layer], non_blocking=self.pinned)
        self._count(Hop.HOST_TO_DEVICE, len(slots) * self._layer_block_bytes)

    def load_blocks(self, pool: Tensor, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Copy the Full Blocks in `slots` to `blocks` of `pool` [layers, blocks, block_tokens, elements]."""
        if self._loopback is not None:
            in_pool, in_staging = self._pool_places(pool, blocks, slots)
            self._loopback.load(pool, in_pool, in_staging, self._layer_block_bytes, _COPY_DEADLINE_S)
        elif self._device.type == "cpu":
            self._copy_into(pool, blocks, slots)
        else:
            places = torch.tensor(blocks, device=self._device)
            here = np.array(slots, np.int64)
            for layer, of_layer in enumerate(pool):
                brought = self._gather_pinned(here, layer).to(self._device, non_blocking=True)
                of_layer.index_copy_(0, places, brought)
        self._count(Hop.HOST_TO_DEVICE, len(slots) * self._layout.full_block_bytes)

    def store_blocks(self, pool: Tensor, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Copy `blocks` of `pool` [layers, blocks, block_tokens, elements] into `slots`, and wait."""
        if self._loopback is not None:
            in_pool, in_staging = self._pool_places(pool, blocks, slots)
            self._loopback.store(pool, in_pool, in_staging, self._layer_block_bytes, _COPY_DEADLINE_S)
        else:
            for block, slot in zip(blocks, slots, strict=True):
                self._slots[slot].copy_(pool[:, block])
        self._count(Hop.DEVICE_TO_HOST, len(slots) * self._layout.full_block_bytes)

    def to_host(self, source: Tensor) -> Tensor:
        """`source` in host memory, ready to be sent; on a CPU device it is `source` itself."""
        if self._device.type == "cpu":
            return source
        self._count(Hop.DEVICE_TO_HOST, source.nbytes)
        return source.cpu()

    def own_layer(self, own: Offsets, theirs: Offsets, layer: int) -> TransferList:
        """To send: `layer` of whole blocks, from slots of the own node to slots of another."""
        return TransferList.equal(
            self.staging.buffer,
            self._places(own, layer),
            self._places(theirs, layer),
            self._layer_block_bytes,
        )

    def new_layer(self, source: Tensor, theirs: Offsets, layer: int) -> tuple[TransferList, Sums]:
        """To send: tokens of `layer` [tokens, elements] in host memory, to slots of another node in turn.

        Also the CRC32C of each slot's tokens. The last slot may be filled in part.
        """
        memory, step = source.view(torch.uint8).view(-1).numpy(), self._layer_block_bytes
        starts = np.arange(len(theirs), dtype=np.int64) * step
        sizes = np.minimum(step, memory.nbytes - starts)
        num_whole = memory.nbytes // step
        sums = checksums(memory, range(0, num_whole * step, step), step)
        if num_whole < len(theirs):
            sums = np.append(sums, np.uint32(checksum(memory[num_whole * step :])))
        row, first = self.rows.place(source)
        return TransferList(row, first + starts, self._places(theirs, layer), sizes), sums

    def send(self, region: RegionHandle, lists: Sequence[TransferList], deadline_s: float) -> None:
        """Write the lists' bytes into another node's staging memory."""
        self._transport.write(region, lists, TrafficClass.KV, deadline_s)
        self._count(Hop.ENGINE_TO_ENGINE, sum(moves.nbytes for moves in lists))

    def fetch(self, destination: Tensor, remote: RemoteBlocks, layer: int, deadline_s: float) -> None:
        """Read one layer of blocks from another node's staging memory into their places in `destination`.

        It is [tokens, elements] and begins with the hit. Raises TransferError if the CRC32C of a run is not
        the expected one: nobody else would see a bit that flipped on the way.
        """
        step = self._layer_block_bytes
        on_cpu = self._device.type == "cpu"
        hit = destination[: remote.runs[-1].stop * self._layout.block_tokens]
        host = hit if on_cpu else torch.empty_like(hit, device="cpu", pin_memory=True)
        memory = host.view(torch.uint8).view(-1).numpy()
        row, first = self.rows.place(host)
        to, places = first + remote.blocks * step, self._places(remote.slots, layer)
        moves = TransferList.equal(row, to, places, step)
        self._transport.read(remote.region, [moves], TrafficClass.KV, deadline_s)
        self._count(Hop.ENGINE_TO_ENGINE, moves.nbytes)
        for run, expected in zip(remote.runs, remote.run_checksums[:, layer].tolist(), strict=True):
            if checksum(memory[run.start * step : run.stop * step]) != expected:
                raise TransferError(
                    f"KV of layer {layer} fetched for blocks [{run.start}, {run.stop}) of a hit from "
                    f"{remote.region.node_id}'s staging memory is not what was read into it"
                )
        if not on_cpu:
            tokens = self._layout.block_tokens
            for run in remote.runs:
                part = slice(run.start * tokens, run.stop * tokens)
                hit[part].copy_(host[part], non_blocking=True)
            self._count(Hop.HOST_TO_DEVICE, moves.nbytes)

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

    def _gather(self, slots: Offsets, layer: int, into: Tensor) -> None:
        torch.index_select(self._slots[:, layer], 0, torch.from_numpy(slots), out=into)

    def _gather_pinned(self, slots: Offsets, layer: int) -> Tensor:
        """A layer of blocks side by side in page-locked memory: one copy instead of one for each block."""
        shape = (len(slots), *self._slots.shape[2:])
        into = torch.empty(shape, dtype=self._slots.dtype, pin_memory=True)
        self._gather(slots, layer, into)
        return into

    def _copy_into(self, pool: Tensor, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """All layers of all blocks as one list, to a pool in host memory."""
        to, places = self._pool_places(pool, blocks, slots)
        sizes = np.full(to.size, self._layer_block_bytes, np.int64)
        copy_all(pool.view(torch.uint8).view(-1).numpy(), to, self.staging.buffer, places, sizes)

    def _pool_places(
        self, pool: Tensor, blocks: Sequence[int], slots: Sequence[int]
    ) -> tuple[Offsets, Offsets]:
        """Byte offsets of every layer of every block, in the pool and in staging memory."""
        num_layers, step = self._layout.num_layers, self._layer_block_bytes
        layers = np.arange(num_layers, dtype=np.int64)
        in_pool = np.array(blocks, np.int64)[:, None] * step + layers * (pool.nbytes // num_layers)
        in_staging = self._places(np.array(slots, np.int64)[:, None], layers)
        return in_pool.reshape(-1), in_staging.reshape(-1)

    def _places(self, slots: Offsets, layer: int | Offsets) -> Offsets:
        """Byte offsets of `layer` of each slot, in any node's staging memory."""
        return slots * self._slot_bytes + layer * self._layer_block_bytes

    def _count(self, hop: Hop, nbytes: int) -> None:
        """Account for a move of KV that was made; a host-device copy waits here for the compute NIC.

        One by loopback has passed it already.
        """
        if self._nics is not None and self._loopback is None and hop in _COPIES:
            self._nics.copy(nbytes, _COPY_DEADLINE_S)
        self.ledger.count(hop, TrafficClass.KV, nbytes)


def open_traffic_manager(
    staging: StagingHandle,
    transport: Transport,
    runner: ModelRunner,
    nics: EngineNics | None = None,
    own_region: RegionHandle | None = None,
    manager: type[TrafficManager] = TrafficManager,
) -> TrafficManager:
    """Map the node's staging memory for an engine that runs `runner`, and share `nics` if there are any.

    `own_region`: the node's memory as peers reach it, if host-device copies go that way too.
    """
    if nics is not None:
        transport = LimitedTransport(transport, nics.own, nics.peers)
    memory = StagingMemory.attach(staging)
    return manager(memory, transport, runner.dtype, runner.device, nics, own_region)


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

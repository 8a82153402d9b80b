"""Feeds one prefill batch: layer l+1 is loaded and layer l-1 sent while layer l computes.

Two HBM buffers take turns, so at most two layers of hit KV are ever resident. One thread does all copies, in
this order: load 0, load 1, send 0, load 2, send 1, ...; `load(l)` starts the copy of layer l+1, by which time
layer l-1 has been computed and its buffer may be overwritten once it is sent.

On a GPU the copies run on a stream of their own. A copy waits there for an event of the compute stream, and
the compute stream gets nothing more to do with a buffer before the thread has seen its copy end. All copies
have ended when `finish` returns, so the buffers' memory may then go to what comes next on the compute stream.

    new KV of a layer       HBM buffer -> decode node's slots
    hit read on this side   own node's slots -> decode node's slots, and -> HBM buffer
    hit read on that side   decode node's slots -> HBM buffer
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from engines.errors import EngineFailed
from engines.model.runner import BatchShape
from engines.traffic_manager import TrafficManager
from kvstore.checksum import checksum
from kvstore.layout import BlockLayout
from kvstore.transport import RegionHandle, TransferOp

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FeedRow:
    """Where one request's KV comes from and goes to."""

    hit_slots: tuple[int | None, ...]
    """Own node's slots of the hit blocks, in block order; None: the block was read into its decode slot."""
    hit_checksums: tuple[tuple[int, ...], ...]
    """Per hit block: CRC32C of each layer."""
    decode_slots: tuple[int, ...]
    """Decode node's slots of the whole prompt, in block order."""
    region: RegionHandle
    """The decode node's staging memory."""

    def runs(self) -> Iterator[tuple[bool, range]]:
        """The hit as runs of blocks that lie on one side; true: on the own node's."""
        start = 0
        for is_own, same in groupby(slot is not None for slot in self.hit_slots):
            stop = start + len(list(same))
            yield is_own, range(start, stop)
            start = stop


class PrefillFeed:
    """A LayerFeed for one batch. `finish` after the forward; the waits are then known."""

    def __init__(
        self,
        traffic: TrafficManager,
        buffers: tuple[Tensor, Tensor],
        shape: BatchShape,
        rows: Sequence[FeedRow],
        deadline_s: float,
    ) -> None:
        self._traffic = traffic
        self._buffers = buffers
        self._shape = shape
        self._rows = rows
        self._deadline_s = deadline_s
        self._layout: BlockLayout = traffic.staging.layout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefill-feed")
        self._stream = torch.cuda.Stream(buffers[0].device) if buffers[0].is_cuda else None
        self._loads: dict[int, Future[float]] = {}
        self._sends: list[Future[None]] = []
        # [row][decode slot][layer]: CRC32C of the new tokens' bytes
        self.checksums: list[list[list[int]]] = [[[] for _ in row.decode_slots] for row in rows]
        self.resident_layers: set[int] = set()
        self.peak_resident_layers = 0
        self.send_wait_s = 0.0
        self._waits: list[tuple[float, float]] = []
        """Per load: seconds the compute waited for it, and seconds it fetched from another node."""
        self._stalls: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []
        """On a GPU, the same as events at both ends of the wait."""
        # The compute stream zeroes the buffers, and may still be at work for whoever had their memory before.
        self._loads[0] = self._thread.submit(self._load, 0, self._compute_event())

    def load(self, layer: int) -> Tensor:
        computed = self._compute_event()
        started_s = time.monotonic()
        fetched_s = self._result(self._loads.pop(layer))
        arrived = self._compute_event()
        if computed is None or arrived is None:
            self._waits.append((time.monotonic() - started_s, fetched_s))
        else:
            self._stalls.append((computed, arrived, fetched_s))
        if layer + 1 < self._layout.num_layers:
            self._loads[layer + 1] = self._thread.submit(self._load, layer + 1, computed)
        return self._buffers[layer % 2]

    def store(self, layer: int) -> None:
        self._sends.append(self._thread.submit(self._send, layer, self._compute_event()))

    def finish(self) -> None:
        """Wait until everything is sent; if something could not be, until nothing is on its way any more."""
        started_s = time.monotonic()
        try:
            for send in self._sends:
                self._result(send)
        finally:
            self.send_wait_s = time.monotonic() - started_s
            self._thread.shutdown(cancel_futures=True)

    @property
    def load_wait_s(self) -> float:
        """Seconds the compute stood still for want of hit KV of the own node."""
        return sum(wait_s - min(wait_s, fetched_s) for wait_s, fetched_s in self._all_waits())

    @property
    def fetch_wait_s(self) -> float:
        """Seconds the compute stood still for want of hit KV of another node.

        A load fetches last, so the end of a wait for it is its fetch.
        """
        return sum(min(wait_s, fetched_s) for wait_s, fetched_s in self._all_waits())

    def _all_waits(self) -> list[tuple[float, float]]:
        """Asked for once the batch is computed.

        A GPU lags behind the host, so there the compute stream's waiting counts and not the host's.
        """
        stalls = [(ready.elapsed_time(go) / 1000, fetched_s) for ready, go, fetched_s in self._stalls]
        return self._waits + stalls

    def _result(self, future: Future[T]) -> T:
        try:
            return future.result(self._deadline_s)
        except FutureTimeout:
            raise EngineFailed(f"moving a layer's KV took over {self._deadline_s} s") from None

    def _compute_event(self) -> torch.cuda.Event | None:
        """On a GPU: an event after all work given to the compute stream so far."""
        if self._stream is None:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _load(self, layer: int, computed: torch.cuda.Event | None) -> float:
        """Returns the seconds that other nodes' blocks took to arrive."""
        self.resident_layers.discard(layer - 2)
        self.resident_layers.add(layer)
        self.peak_resident_layers = max(self.peak_resident_layers, len(self.resident_layers))
        with torch.cuda.stream(self._stream):
            if self._stream is not None and computed is not None:
                self._stream.wait_event(computed)
            for buffer, row in zip(self._buffers[layer % 2], self._rows, strict=True):
                self._load_own(buffer, row, layer)
            fetching_s = time.monotonic()
            for buffer, row in zip(self._buffers[layer % 2], self._rows, strict=True):
                self._fetch(buffer, row, layer)
            fetched_s = time.monotonic() - fetching_s
            if self._stream is not None:
                self._stream.synchronize()
        return fetched_s

    def _load_own(self, buffer: Tensor, row: FeedRow, layer: int) -> None:
        for is_own, blocks in row.runs():
            if is_own:
                slots = [slot for slot in row.hit_slots[blocks.start : blocks.stop] if slot is not None]
                self._traffic.load_layer(self._tokens(buffer, blocks), slots, layer)

    def _fetch(self, buffer: Tensor, row: FeedRow, layer: int) -> None:
        for is_own, blocks in row.runs():
            if not is_own:
                self._traffic.fetch(
                    self._tokens(buffer, blocks),
                    row.region,
                    [self._offset(row.decode_slots[block], layer) for block in blocks],
                    [row.hit_checksums[block][layer] for block in blocks],
                    self._deadline_s,
                )

    def _tokens(self, buffer: Tensor, blocks: range) -> Tensor:
        step = self._layout.block_tokens
        return buffer[blocks.start * step : blocks.stop * step]

    def _send(self, layer: int, computed: torch.cuda.Event | None) -> None:
        with torch.cuda.stream(self._stream):
            if self._stream is not None and computed is not None:
                self._stream.wait_event(computed)
            new = self._buffers[layer % 2][:, self._shape.hit_columns :]
            for index, row in enumerate(self._rows):
                count = self._shape.new_tokens[index]
                host = self._traffic.to_host(new[index, :count]).contiguous()
                ops = self._hit_ops(row, layer) + self._new_ops(index, row, host, layer)
                self._traffic.send(row.region, ops, self._deadline_s)

    def _hit_ops(self, row: FeedRow, layer: int) -> list[TransferOp]:
        staging = self._traffic.staging
        pairs = zip(row.hit_slots, row.decode_slots, strict=False)
        return [
            TransferOp(staging.layer_block(own, layer), self._offset(theirs, layer))
            for own, theirs in pairs
            if own is not None
        ]

    def _new_ops(self, index: int, row: FeedRow, host: Tensor, layer: int) -> list[TransferOp]:
        """One op per decode slot that takes new tokens; the hit ends on a block border."""
        data = host.view(torch.uint8).numpy()
        ops, step, num_hit = [], self._layout.block_tokens, len(row.hit_slots)
        for block in range(num_hit, len(row.decode_slots)):
            start = (block - num_hit) * step
            part = data[start : start + step].reshape(-1)
            self.checksums[index][block].append(checksum(part))
            ops.append(TransferOp(part, self._offset(row.decode_slots[block], layer)))
        return ops

    def _offset(self, slot: int, layer: int) -> int:
        return slot * self._layout.slot_bytes + self._layout.layer_offset(layer)

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

import numpy as np
import torch
from torch import Tensor

from engines.batch_trace import BatchTrace
from engines.errors import EngineFailed
from engines.model.runner import BatchShape
from engines.remote_blocks import RemoteBlocks
from engines.traffic_manager import TrafficManager
from kvstore.checksum import Sums, pack_sums
from kvstore.layout import BlockLayout
from kvstore.transport import Offsets, RegionHandle, TransferList

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FeedRow:
    """Where one request's KV comes from and goes to."""

    hit_slots: tuple[int | None, ...]
    """Own node's slots of the hit blocks, in block order; None: the block lies in its decode slot, read into
    it or computed by an earlier chunk of the prompt."""
    hit_checksums: tuple[bytes, ...]
    """Per hit block: its layer sums."""
    decode_slots: tuple[int, ...]
    """Decode node's slots of the prompt up to where this batch computes it, in block order."""
    region: RegionHandle
    """The decode node's staging memory."""
    hit_sent: bool
    """The decode node has the own node's hit blocks already: an earlier chunk of the prompt sent them."""

    def runs(self) -> Iterator[tuple[bool, range]]:
        """The hit as runs of blocks that lie on one side; true: on the own node's."""
        start = 0
        for is_own, same in groupby(slot is not None for slot in self.hit_slots):
            stop = start + len(list(same))
            yield is_own, range(start, stop)
            start = stop


@dataclass(frozen=True, slots=True, eq=False)
class _RowMoves:
    """A FeedRow as columns of slots: what moves is the same in every layer."""

    region: RegionHandle
    own_runs: tuple[tuple[range, Offsets], ...]
    """Runs of hit blocks that lie in own slots, and those slots."""
    remote: RemoteBlocks | None
    forward: tuple[Offsets, Offsets] | None
    """Own slots of hit blocks that the decode node lacks, and its slots for them."""
    new_slots: Offsets
    """Decode node's slots of the new tokens."""
    new_checksums: Sums
    """[new slots, layers], filled as layers are sent."""

    @classmethod
    def of(cls, row: FeedRow, layout: BlockLayout) -> _RowMoves:
        runs = list(row.runs())
        there = [run for is_own, run in runs if not is_own]
        own = [(block, slot) for block, slot in enumerate(row.hit_slots) if slot is not None]
        decode_slots = np.array(row.decode_slots, np.int64)
        forward = None
        if own and not row.hit_sent:
            blocks, slots = np.array(own, np.int64).T
            forward = slots, decode_slots[blocks]
        new_slots = decode_slots[len(row.hit_slots) :]
        remote = RemoteBlocks.of(layout, row.region, there, row.decode_slots, row.hit_checksums)
        return cls(
            region=row.region,
            own_runs=tuple(
                (run, np.array(row.hit_slots[run.start : run.stop], np.int64))
                for is_own, run in runs
                if is_own
            ),
            remote=remote if there else None,
            forward=forward,
            new_slots=new_slots,
            new_checksums=np.zeros((len(new_slots), layout.num_layers), np.uint32),
        )


class PrefillFeed:
    """A LayerFeed for one batch. `finish` after the forward; the waits are then known."""

    def __init__(
        self,
        traffic: TrafficManager,
        buffers: Sequence[Tensor],
        shape: BatchShape,
        rows: Sequence[FeedRow],
        deadline_s: float,
        trace: BatchTrace | None = None,
    ) -> None:
        self._traffic = traffic
        self._trace = trace
        self._buffers = buffers
        self._shape = shape
        self._deadline_s = deadline_s
        self._layout: BlockLayout = traffic.staging.layout
        self._rows = [_RowMoves.of(row, self._layout) for row in rows]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefill-feed")
        self._stream = torch.cuda.Stream(buffers[0].device) if buffers[0].is_cuda else None
        self._loads: dict[int, Future[float]] = {}
        self._sends: list[Future[None]] = []
        self.resident_layers: set[int] = set()
        self.peak_resident_layers = 0
        self.send_wait_s = 0.0
        self._waits: list[tuple[float, float]] = []
        """Per load: seconds the compute waited for it, and seconds it fetched from another node."""
        self._stalls: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []
        """On a GPU, the same as events at both ends of the wait."""
        traffic.rows.keep(buffers)
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
        return self._buffers[layer % len(self._buffers)]

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
            self._traffic.rows.let_go(self._buffers)

    def new_checksums(self, index: int) -> list[bytes]:
        """Of the blocks that this batch computed for a row, by decode slot: their layer sums."""
        return [pack_sums(sums) for sums in self._rows[index].new_checksums]

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
        started_s = time.monotonic()
        self.resident_layers.discard(layer - len(self._buffers))
        self.resident_layers.add(layer)
        self.peak_resident_layers = max(self.peak_resident_layers, len(self.resident_layers))
        with torch.cuda.stream(self._stream):
            if self._stream is not None and computed is not None:
                self._stream.wait_event(computed)
            for buffer, row in zip(self._buffers[layer % len(self._buffers)], self._rows, strict=True):
                self._load_own(buffer, row, layer)
            fetching_s = time.monotonic()
            for buffer, row in zip(self._buffers[layer % len(self._buffers)], self._rows, strict=True):
                self._fetch(buffer, row, layer)
            fetched_s = time.monotonic() - fetching_s
            if self._trace is not None and any(row.remote is not None for row in self._rows):
                self._trace.add("cnic", f"fetch layer {layer}", fetching_s)
            if self._stream is not None:
                self._stream.synchronize()
        if self._trace is not None:
            self._trace.add("load", f"load layer {layer}", started_s)
        return fetched_s

    def _load_own(self, buffer: Tensor, row: _RowMoves, layer: int) -> None:
        for blocks, slots in row.own_runs:
            self._traffic.load_layer(self._tokens(buffer, blocks), slots, layer)

    def _fetch(self, buffer: Tensor, row: _RowMoves, layer: int) -> None:
        if row.remote is not None:
            self._traffic.fetch(buffer, row.remote, layer, self._deadline_s)

    def _tokens(self, buffer: Tensor, blocks: range) -> Tensor:
        step = self._layout.block_tokens
        return buffer[blocks.start * step : blocks.stop * step]

    def _send(self, layer: int, computed: torch.cuda.Event | None) -> None:
        with torch.cuda.stream(self._stream):
            if self._stream is not None and computed is not None:
                self._stream.wait_event(computed)
            new = self._buffers[layer % len(self._buffers)][:, self._shape.hit_columns :]
            lists: dict[RegionHandle, list[TransferList]] = {}
            for index, row in enumerate(self._rows):
                to_region = lists.setdefault(row.region, [])
                if row.forward is not None:
                    to_region.append(self._traffic.own_layer(*row.forward, layer))
                host = self._traffic.to_host(new[index, : self._shape.new_tokens[index]]).contiguous()
                moves, row.new_checksums[:, layer] = self._traffic.new_layer(host, row.new_slots, layer)
                to_region.append(moves)
            started_s = time.monotonic()
            for region, to_region in lists.items():
                self._traffic.send(region, to_region, self._deadline_s)
            if self._trace is not None:
                self._trace.add("cnic", f"send layer {layer}", started_s)

"""The connector's half beside vLLM's cache: copies pages between it and staging memory, layer by layer.

It decides nothing: a StepPlan says which pages and slots. While layer l computes, one thread brings the next
ones in; each Layer Block is compared with its sum before its bytes go on, and what does not match is reported
page by page, so that vLLM computes it again. Layers are saved as they end.

    staging memory as pages   [num_slots, layers, pages_per_block, ...]   one view, no copy
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np
import torch
from torch import Tensor

from engines.errors import EngineFailed
from engines.vllm.messages import BlockLoad, BlockSave, PageMoves, SavedBlock, StepPlan, StepReport
from engines.vllm.page_format import PageFormat, layers_in_order, pages_of
from kvstore.checksum import Sums, checksums, layer_sums, pack_sums
from kvstore.layout import BlockLayout
from kvstore.staging import StagingMemory
from kvstore.traffic import TrafficClass
from kvstore.traffic_ledger import Hop, TrafficLedger

_LOAD_DEADLINE_S = 60.0
"""Longest a layer may take to come in from memory; vLLM's forward waits for it."""


class WorkerSide:
    """One per vLLM worker. All calls come from the thread that runs the model."""

    def __init__(self, caches: Mapping[str, Tensor], page_format: PageFormat, num_pages: int) -> None:
        self._format = page_format
        self._layers = {name: number for number, name in enumerate(layers_in_order(caches))}
        self._caches = [pages_of(caches[name], num_pages) for name in self._layers]
        self._staging: _StagedPages | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-load")
        self._loads: tuple[BlockLoad, ...] = ()
        self._loading: list[Future[None]] = []
        """By layer, while a forward has hits."""
        self._save: _Save | None = None
        self._late: tuple[tuple[str, tuple[BlockSave, ...]], ...] = ()
        self._bad_slots: dict[int, set[int]] = {}
        """By damaged slot, the pages that were to hold its bytes."""
        self._bad_pages: set[int] = set()
        self._ended: set[str] = set()
        self._report = StepReport()
        self.ledger = TrafficLedger()

    def begin(self, plan: StepPlan) -> None:
        """A step begins: remember what to load and to save."""
        if plan.staging is not None and self._staging is None:
            self._staging = _StagedPages(StagingMemory.attach(plan.staging), self._format)
        self._report, self._loads, self._late = StepReport(), plan.loads, plan.late
        self._save = _Save(plan.saves, len(self._caches)) if plan.saves else None

    def start_loads(self) -> None:
        """vLLM's pages may be written to: bring the hits in, the first layer first."""
        if self._loads and not self._loading:
            load = _Load(self._loads, len(self._caches))
            self._loading = [
                self._thread.submit(self._load_layer, load, layer) for layer in range(len(self._caches))
            ]

    def wait_for_layer(self, name: str) -> None:
        """Return when this layer's hits are in vLLM's cache. Raises EngineFailed if that takes too long."""
        if self._loading:
            self._wait(self._loading[self._layers[name]])

    def layer_ended(self, name: str) -> None:
        """The layer has computed: save its part of every block that is full now."""
        if self._save is not None:
            self._save_layer(self._save, self._layers[name])

    def end(self) -> None:
        """A step ends: whatever it did not reach is done now, and the report is made."""
        self.start_loads()
        for loading in self._loading:
            self._wait(loading)
        saved = self._finish_save(self._save)
        for request_id, saves in self._late:
            saved += self._finish_save(_Save(saves, len(self._caches)))
            self._ended.add(request_id)
        for pages in self._bad_slots.values():
            self._bad_pages |= pages
        self._report = StepReport(
            loaded=tuple(load.load_id for load in self._loads),
            damaged=tuple(self._bad_slots),
            saved=tuple(saved),
        )
        self._loading, self._loads, self._late, self._save = [], (), (), None
        self._bad_slots = {}

    def take_report(self) -> StepReport:
        report, self._report = self._report, StepReport()
        return report

    def take_bad_pages(self) -> set[int]:
        """vLLM's blocks that do not hold what they should since the last call."""
        bad, self._bad_pages = self._bad_pages, set()
        return bad

    def take_ended(self) -> set[str]:
        """Requests whose last blocks have been saved since the last call."""
        ended, self._ended = self._ended, set()
        return ended

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _wait(self, loading: Future[None]) -> None:
        try:
            loading.result(_LOAD_DEADLINE_S)
        except FutureTimeout:
            raise EngineFailed(f"a layer of a hit was not copied within {_LOAD_DEADLINE_S:.0f} s") from None

    # -- on the loading thread -----------------------------------------------------------------------

    def _load_layer(self, load: _Load, layer: int) -> None:
        staging, cache = self._staged(), self._caches[layer]
        found = staging.sums(load.slots, layer)
        for number in np.flatnonzero(found != load.sums[:, layer]).tolist():
            slot = load.slots[number]
            of_slot = load.moves.pages[load.moves.slots == slot]
            self._bad_slots.setdefault(slot, set()).update(of_slot.tolist())
        moves = load.moves
        brought = staging.pages[layer][torch.from_numpy(moves.slots), torch.from_numpy(moves.parts)]
        cache[torch.from_numpy(moves.pages).to(cache.device)] = brought.to(cache.device)
        self.ledger.count(Hop.HOST_TO_DEVICE, TrafficClass.KV, brought.nbytes)

    # -- saving --------------------------------------------------------------------------------------

    def _save_layer(self, save: _Save, layer: int) -> None:
        if layer in save.done:
            return
        staging, cache = self._staged(), self._caches[layer]
        taken = cache[save.pages.to(cache.device)].to("cpu")
        staging.pages[layer][save.slots] = taken.unflatten(0, (len(save.slots), -1))
        save.sums[:, layer] = staging.sums(save.slots.tolist(), layer)
        save.done.add(layer)
        self.ledger.count(Hop.DEVICE_TO_HOST, TrafficClass.KV, taken.nbytes)

    def _finish_save(self, save: _Save | None) -> list[SavedBlock]:
        if save is None:
            return []
        for layer in range(len(self._caches)):
            self._save_layer(save, layer)
        return [
            SavedBlock(slot, pack_sums(sums))
            for slot, sums in zip(save.slots.tolist(), save.sums, strict=True)
        ]

    def _staged(self) -> _StagedPages:
        assert self._staging is not None, "a plan with work names the staging memory"
        return self._staging


class _StagedPages:
    """Staging memory seen as pages."""

    def __init__(self, staging: StagingMemory, page_format: PageFormat) -> None:
        layout: BlockLayout = staging.layout
        self._staging = staging
        self._layout = layout
        dtype: torch.dtype = getattr(torch, page_format.dtype)
        per_block = layout.block_tokens // page_format.page_tokens
        elements = torch.from_numpy(staging.buffer).view(dtype).view(staging.num_slots, -1)
        used = elements[:, : layout.full_block_bytes // dtype.itemsize]
        assert layout.full_block_bytes == (
            layout.num_layers * per_block * math.prod(page_format.shape) * dtype.itemsize
        ), (layout, page_format)
        # By layer: [num_slots, pages_per_block, ...]
        self.pages = used.unflatten(1, (layout.num_layers, per_block, *page_format.shape)).unbind(1)

    def sums(self, slots: Sequence[int], layer: int) -> Sums:
        """CRC32C of the layer's part of each slot."""
        places = [self._staging.offset(slot, layer) for slot in slots]
        return checksums(self._staging.buffer, places, self._layout.layer_block_bytes)


class _Load:
    """All hits of one step, in columns."""

    def __init__(self, loads: Sequence[BlockLoad], num_layers: int) -> None:
        self.slots = [slot for load in loads for slot in load.slots]
        sums = [block for load in loads for block in load.checksums]
        self.sums = layer_sums(sums, num_layers)
        self.moves = PageMoves(
            np.concatenate([load.moves.pages for load in loads]),
            np.concatenate([load.moves.slots for load in loads]),
            np.concatenate([load.moves.parts for load in loads]),
        )


class _Save:
    """Blocks that are saved together, and which layers of them are."""

    def __init__(self, saves: Sequence[BlockSave], num_layers: int) -> None:
        self.slots = torch.tensor([save.slot for save in saves])
        self.pages = torch.tensor([page for save in saves for page in save.pages])
        self.sums = np.zeros((len(saves), num_layers), np.uint32)
        self.done: set[int] = set()

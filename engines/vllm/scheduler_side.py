"""The connector's half beside vLLM's scheduler: which blocks a request hits, loads and saves.

It decides and keeps the books; a BlockService has the bytes brought, and the worker's half copies them. It
knows of vLLM's requests what `RequestView` says. Blocks count from the start of a request's context; a block
is `pages_per_block` of vLLM's.

    query      a request waits for vLLM's admission: how much of its context is stored? None: not yet
    allocated  vLLM gave it pages
    plan       a step begins: load what was found, save blocks that are full when it ends
    report     a step has ended
    finished   vLLM would like its pages back
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np

from engines.vllm.block_service import BlockService, Hit, OutgoingBlock
from engines.vllm.messages import BlockLoad, BlockSave, Column, PageMoves, StepPlan, StepReport
from kvstore.keys import BlockKey, KeyChain, chain_root

_PATIENCE_S = 0.001
"""vLLM's scheduler stands still for so long: a context of which nothing is stored need not wait a step."""

PageTable = Callable[[str], Sequence[int]]
"""vLLM's pages of a request, in the order of its tokens."""


class RequestView(Protocol):
    """What the books need of a vLLM request."""

    request_id: str

    @property
    def all_token_ids(self) -> Sequence[int]:
        """Prompt and what was generated, as far as it is known."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many those are."""
        ...


@dataclass(slots=True)
class _Entry:
    """One request's books."""

    request: RequestView
    chain: KeyChain
    handled: int = 0
    """Blocks before this one are stored, being saved, or not to be."""
    looking: Future[Hit] | None = None
    first_looked: int = 0
    loading_from: int | None = None
    """The first token vLLM has no KV of; the hit found goes in with the next step."""

    def extend(self) -> None:
        self.chain.extend(self.request.all_token_ids[self.chain.num_tokens :])


@dataclass(frozen=True, slots=True)
class _Saving:
    key: BlockKey
    parent: BlockKey


@dataclass(slots=True)
class SchedulerFigures:
    """Counted since the start."""

    queries: int = 0
    not_yet: int = 0
    hit_tokens: int = 0
    loaded_blocks: int = 0
    damaged_blocks: int = 0
    saved_blocks: int = 0


class SchedulerSide:
    """One per vLLM engine. All calls come from its scheduler's thread."""

    def __init__(self, service: BlockService, page_tokens: int, *, loads: bool, saves: bool) -> None:
        self._service = service
        self._page_tokens = page_tokens
        self._block_tokens = service.layout.block_tokens
        self._pages_per_block = self._block_tokens // page_tokens
        self._loads_hits = loads
        self._saves_blocks = saves
        self._entries: dict[str, _Entry] = {}
        self._loading: dict[int, Hit] = {}
        self._saving: dict[int, _Saving] = {}
        """By slot."""
        self._being_saved: set[BlockKey] = set()
        """Their keys."""
        self._late: list[tuple[str, tuple[BlockSave, ...]]] = []
        self._load_ids = count()
        self.figures = SchedulerFigures()

    def query(self, request: RequestView, computed_tokens: int, salt: str) -> int | None:
        """Stored tokens of the request's context beyond `computed_tokens`; None: ask again."""
        entry = self._entries.get(request.request_id)
        if entry is None:
            root = chain_root(self._service.weights_id, self._service.layout.format, salt=salt)
            entry = _Entry(request, KeyChain(root, self._block_tokens))
            self._entries[request.request_id] = entry
        entry.extend()
        # One token at least is computed: something has to be sampled from.
        usable = (request.num_tokens - 1) // self._block_tokens
        first = computed_tokens // self._block_tokens
        if entry.looking is not None and entry.first_looked > first:
            self._stop_looking(entry)  # vLLM has lost pages that it had
        if not usable:
            return 0
        if entry.looking is None:
            self.figures.queries += 1
            # Without a use for the bytes too: what is stored need not be saved.
            entry.first_looked = first if self._loads_hits else usable
            entry.looking = self._service.find(entry.chain.keys[:usable], entry.first_looked)
        hit = self._settled(entry.looking)
        if hit is None:
            self.figures.not_yet += 1
            return None
        entry.handled = hit.num_known
        hit_tokens = hit.end * self._block_tokens
        if hit.blocks and hit_tokens > computed_tokens:
            return hit_tokens - computed_tokens
        self._stop_looking(entry)
        return 0

    def allocated(self, request: RequestView, external_tokens: int) -> None:
        """vLLM admits the request and has pages for `external_tokens` that a query promised; 0: for none."""
        entry = self._entries.get(request.request_id)
        if entry is None:
            return
        if not external_tokens or entry.looking is None:
            self._stop_looking(entry)
            return
        entry.loading_from = entry.looking.result().end * self._block_tokens - external_tokens
        self.figures.hit_tokens += external_tokens

    def plan(self, computed_after: Iterable[tuple[str, int]], pages: PageTable) -> StepPlan:
        """This step's work. `computed_after`: each request's tokens that have KV when the step ends."""
        loads: list[BlockLoad] = []
        saves: list[BlockSave] = []
        for request_id, tokens in computed_after:
            entry = self._entries.get(request_id)
            if entry is None:
                continue
            if entry.loading_from is not None:
                loads.append(self._load(entry, np.asarray(pages(request_id), np.int64)))
            # What a speculating or asynchronous scheduler hopes to have computed has no name yet.
            full = min(tokens, entry.request.num_tokens) // self._block_tokens
            if full > entry.handled and self._saves_blocks:
                saves += self._save(entry, full, pages(request_id))
        late, self._late = self._late, []
        return StepPlan(self._service.staging, tuple(loads), tuple(saves), tuple(late))

    def report(self, report: StepReport) -> None:
        """What became of a plan."""
        if report.damaged:
            self._lose(set(report.damaged))
        for load_id in report.loaded:
            hit = self._loading.pop(load_id)
            self.figures.loaded_blocks += len(hit.blocks)
            self._service.let_go(hit)
        outgoing = []
        for saved in report.saved:
            saving = self._end_save(saved.slot)
            outgoing.append(OutgoingBlock(saving.key, saving.parent, saved.slot, saved.layer_checksums))
        if outgoing:
            self.figures.saved_blocks += len(outgoing)
            self._service.store(outgoing)

    def _lose(self, slots: set[int]) -> None:
        """What lies in these slots is damaged, whoever loads from them."""
        held = [block.held for hit in self._loading.values() for block in hit.blocks]
        for key in {each.key for each in held if each.slot in slots}:
            self._service.lost(key)
            self.figures.damaged_blocks += 1

    def finished(self, request: RequestView, computed_tokens: int, pages: Sequence[int]) -> bool:
        """The request has ended; whether some of its pages are still to be saved: then they stay.

        `computed_tokens` of it have KV. Pages are empty for a request that was aborted or never ran.
        """
        entry = self._entries.pop(request.request_id, None)
        if entry is None:
            return False
        was_loading = entry.loading_from is not None
        self._stop_looking(entry)
        if was_loading or not pages or not self._saves_blocks:
            return False
        entry.extend()
        full = min(computed_tokens, request.num_tokens - 1) // self._block_tokens
        saves = self._save(entry, full, pages) if full > entry.handled else []
        if saves:
            self._late.append((request.request_id, tuple(saves)))
        return bool(saves)

    @property
    def has_late_saves(self) -> bool:
        """Does a step have to run for pages to become free?"""
        return bool(self._late)

    def forget_all(self) -> None:
        """The weights have changed: what was begun under the old ones is neither found nor stored."""
        for entry in self._entries.values():
            self._stop_looking(entry)
        self._entries.clear()

    def _load(self, entry: _Entry, pages: Column) -> BlockLoad:
        assert entry.looking is not None
        assert entry.loading_from is not None
        hit = entry.looking.result()
        start = entry.loading_from // self._page_tokens
        numbers = np.arange(start, hit.end * self._pages_per_block)
        slots = np.array([block.held.slot for block in hit.blocks], np.int64)
        blocks, parts = np.divmod(numbers, self._pages_per_block)
        load_id = next(self._load_ids)
        self._loading[load_id] = hit
        entry.looking = entry.loading_from = None
        return BlockLoad(
            load_id,
            PageMoves(pages[numbers], slots[blocks - hit.first], parts),
            tuple(slots.tolist()),
            tuple(block.layer_checksums for block in hit.blocks),
        )

    def _save(self, entry: _Entry, full: int, pages: Sequence[int]) -> list[BlockSave]:
        """Blocks up to `full` for which there are slots; the others wait for a later step."""
        entry.extend()
        keys, room = entry.chain.keys, self._service.room
        new = [
            number
            for number in range(entry.handled, full)
            if keys[number] not in self._being_saved and not room.keeps(keys[number])
        ]
        slots = room.take(len(new))
        saves = []
        for number, slot in zip(new, slots, strict=False):
            parent = keys[number - 1] if number else entry.chain.root
            self._saving[slot] = _Saving(keys[number], parent)
            first = number * self._pages_per_block
            saves.append(BlockSave(slot, tuple(pages[first : first + self._pages_per_block])))
        entry.handled = full if len(slots) == len(new) else new[len(slots)]
        if saves:
            expected = [keys[number] for number in new[: len(saves)]]
            self._being_saved.update(expected)
            self._service.expect(expected)
        return saves

    def _end_save(self, slot: int) -> _Saving:
        saving = self._saving.pop(slot)
        self._being_saved.discard(saving.key)
        return saving

    def _settled(self, looking: Future[Hit]) -> Hit | None:
        try:
            return looking.result(_PATIENCE_S)
        except FutureTimeout:
            return None

    def _stop_looking(self, entry: _Entry) -> None:
        if entry.looking is not None:
            self._service.abandon(entry.looking)
        entry.looking = entry.loading_from = None

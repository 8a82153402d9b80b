"""A server's connector without vLLM: real halves, store and memory; tokens' KV is made, not computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from engines.vllm.block_service import BlockService
from engines.vllm.messages import StepPlan
from engines.vllm.page_format import CacheGroup, page_format
from engines.vllm.scheduler_side import SchedulerSide
from engines.vllm.settings import store_config
from engines.vllm.worker_side import WorkerSide
from kvstore.keys import WeightsId

PAGE_TOKENS, NUM_PAGES, LAYERS, HEADS, DIM = 8, 64, 3, 2, 16
BLOCK_TOKENS = 16
PLENTY_S = 60.0
WEIGHTS = WeightsId("w0")


@dataclass
class SmallRequest:
    """A request as vLLM has it, as far as the connector looks."""

    request_id: str
    all_token_ids: list[int]
    pages: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


def eventually(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PLENTY_S
    while not condition():
        assert time.monotonic() < end_s, "the condition never held"
        time.sleep(0.005)


def made_kv(token_ids: Sequence[int], layer: int) -> Tensor:
    """[tokens, heads, dim]: depends on the layer and on all tokens up to each."""
    sums = torch.tensor(token_ids, dtype=torch.float64).cumsum(0) * (layer + 1)
    return torch.sin(sums[:, None, None] + torch.arange(HEADS * DIM).view(HEADS, DIM)).float()


class SmallServer:
    """One vLLM engine's worth of pages."""

    def __init__(self, path: Path, weights_id: WeightsId = WEIGHTS, **said: object) -> None:
        shape = (NUM_PAGES, HEADS, PAGE_TOKENS, DIM)
        self.caches = {f"model.layers.{layer}.attn": torch.zeros(shape) for layer in range(LAYERS)}
        pages = page_format(self.caches, [CacheGroup("FullAttentionSpec", NUM_PAGES, PAGE_TOKENS)], "test")
        config = store_config(
            {"path": str(path), "block_tokens": BLOCK_TOKENS, "staging_bytes": 64 << 12, "dram_bytes": 0}
            | said,
            PAGE_TOKENS,
        )
        self.service = BlockService(config, pages.block_layout(BLOCK_TOKENS), weights_id)
        self.scheduler = SchedulerSide(self.service, PAGE_TOKENS, loads=True, saves=True)
        self.worker = WorkerSide(self.caches, pages, NUM_PAGES)
        self._free = list(range(NUM_PAGES))
        self._count = 0
        self.bad_pages: set[int] = set()

    def admit(self, token_ids: Sequence[int], salt: str = "") -> tuple[SmallRequest, int]:
        """Wait until the connector has an answer, and give the request its pages; returns its hit tokens."""
        self._count += 1
        request = SmallRequest(f"r{self._count}", list(token_ids))
        answer: list[int | None] = [None]

        def asked() -> bool:
            answer[0] = self.scheduler.query(request, 0, salt)
            return answer[0] is not None

        eventually(asked)
        hit = answer[0] or 0
        request.computed = hit
        self._grow(request)
        self.scheduler.allocated(request, hit)
        return request, hit

    def step(self, *requests: SmallRequest, before_load: Callable[[], None] = lambda: None) -> None:
        """Compute all tokens of `requests` that are known."""
        for request in requests:
            self._grow(request)
        tables = {request.request_id: request.pages for request in requests}
        computed_after = [(request.request_id, request.num_tokens) for request in requests]
        plan = self.scheduler.plan(computed_after, tables.__getitem__)
        before_load()
        self.run(plan, requests)

    def run(self, plan: StepPlan, requests: Sequence[SmallRequest] = ()) -> set[str]:
        self.worker.begin(plan)
        self.worker.start_loads()
        for layer, name in enumerate(self.caches):
            self.worker.wait_for_layer(name)
            for request in requests:
                self._compute(request, layer)
            self.worker.layer_ended(name)
        self.worker.end()
        self.bad_pages |= self.worker.take_bad_pages()
        self.scheduler.report(self.worker.take_report())
        for request in requests:
            request.computed = request.num_tokens
        return self.worker.take_ended()

    def finish(self, request: SmallRequest) -> bool:
        """Whether its pages are still to be saved."""
        # Of the last token there is no KV: it was sampled and not fed.
        request.all_token_ids.append(0)
        late = self.scheduler.finished(request, request.computed, request.pages)
        if not late:
            self._free += request.pages
        return late

    def turn(self, token_ids: Sequence[int]) -> int:
        """A whole request of one step; returns its hit tokens, once all it saved is stored."""
        request, hit = self.admit(token_ids)
        self.step(request)
        self.check(request)
        assert not self.finish(request)
        self.settle()
        return hit

    def check(self, request: SmallRequest) -> None:
        """Raise AssertionError unless every page holds the KV of its tokens."""
        for layer, cache in enumerate(self.caches.values()):
            held = cache[request.pages].transpose(1, 2).flatten(0, 1)[: request.computed]
            assert torch.equal(held, made_kv(request.all_token_ids[: request.computed], layer)), layer

    def settle(self) -> None:
        """Return when nothing is being written."""
        self.service.flush()

    def close(self) -> None:
        self.worker.close()
        self.service.close()
        self.service.room.check()

    def _grow(self, request: SmallRequest) -> None:
        missing = -(-request.num_tokens // PAGE_TOKENS) - len(request.pages)
        request.pages += [self._free.pop(0) for _ in range(missing)]

    def _compute(self, request: SmallRequest, layer: int) -> None:
        kv = made_kv(request.all_token_ids, layer)
        cache = list(self.caches.values())[layer]
        for token in range(request.computed, request.num_tokens):
            page, place = divmod(token, PAGE_TOKENS)
            cache[request.pages[page], :, place] = kv[token]


@contextmanager
def small_server(path: Path, weights_id: WeightsId = WEIGHTS, **said: object) -> Iterator[SmallServer]:
    server = SmallServer(path, weights_id, **said)
    try:
        yield server
    finally:
        server.close()


def context(num_tokens: int, seed: int = 1) -> list[int]:
    return [(seed * 31 + i * 7) % 250 for i in range(num_tokens)]

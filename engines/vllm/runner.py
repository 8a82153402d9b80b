"""vLLM's worker as a ModelRunner: its model and kernels under this project's engines, scheduler and store.

The prefill and decode engines decide what runs and where its KV lies, as with every runner; vLLM's worker
computes it, told by the messages that its own scheduler would send. A page of vLLM's cache is a block, and
the decode pool is vLLM's cache itself. What a page looks like inside is vLLM's, so a block moves whole, even
where it is filled in part (`paged`). Tokens are drawn by engines.sampling, as with every runner.

The interfaces used here are vLLM's inside and change with its releases: see engines.vllm.version.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import vllm

from engines.vllm.version import require_tested

require_tested(vllm.__version__)

from torch import Tensor  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.config import KVTransferConfig  # noqa: E402
from vllm.distributed.kv_transfer import get_kv_transfer_group  # noqa: E402
from vllm.v1.core.sched.output import (  # noqa: E402
    CachedRequestData,
    NewRequestData,
    SchedulerOutput,
)

from engines.errors import ModelUnsupported  # noqa: E402
from engines.measured import Forward, TokenCounts  # noqa: E402
from engines.model.runner import (  # noqa: E402
    BatchShape,
    DecodeRow,
    GroupLinks,
    LayerFeed,
    NamedArray,
    PrefillRow,
)
from engines.scheduling.prefill_estimates import PrefillProfile  # noqa: E402
from engines.vllm.feed_connector import FeedConnector, NoPlan, Sweep, pages_in_turn  # noqa: E402
from engines.vllm.folder_weights import other_weights  # noqa: E402
from engines.vllm.page_format import CacheGroup, layers_in_order, page_format  # noqa: E402
from engines.vllm.page_kind import page_kind  # noqa: E402
from kvstore.layout import BlockLayout  # noqa: E402

ROTATION = ("-rotary_embedding", "-deepseek_scaling_rotary_embedding")
"""PyTorch's rotation: vLLM 0.32's kernel for CPUs turns the wrong tokens of an MLA cache."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What vLLM makes room for."""

    rows: int
    tokens: int


class VllmRunner:
    """A ModelRunner over one vLLM worker in this process."""

    pads = False
    padding_exact = True
    paged = True
    prefill_profile: PrefillProfile | None = None
    attention_s: float | None = None

    def __init__(
        self, model_path: str, block_tokens: int, *, dtype: str, device: str, kv_bytes: int, most: BatchLimits
    ) -> None:
        """Load the model; `kv_bytes` for vLLM's cache. Raises ModelUnsupported, in one line."""
        self.device = torch.device(device)
        self._folder = Path(model_path)
        self._llm = LLM(
            model_path,
            skip_tokenizer_init=True,
            dtype=dtype,
            enforce_eager=True,
            max_model_len=-1,  # what the cache holds
            max_num_seqs=most.rows,
            max_num_batched_tokens=most.tokens,
            enable_prefix_caching=False,
            async_scheduling=False,
            kv_cache_memory_bytes=kv_bytes,
            block_size=block_tokens,
            distributed_executor_backend="uni",
            kv_transfer_config=KVTransferConfig(
                kv_connector="FeedConnector",
                kv_connector_module_path="engines.vllm.feed_connector",
                kv_role="kv_both",
            ),
            compilation_config={"custom_ops": list(ROTATION)} if device == "cpu" else {},
        )
        connector = get_kv_transfer_group()
        assert isinstance(connector, FeedConnector)
        self._connector = connector
        core = self._llm.llm_engine.engine_core.engine_core
        self._worker: Any = core.model_executor.driver_worker.worker.model_runner
        config = connector.kv_cache_config
        groups = [
            CacheGroup(type(group.kv_cache_spec).__name__, config.num_blocks, group.kv_cache_spec.block_size)
            for group in config.kv_cache_groups
        ]
        kind = page_kind(self._llm.llm_engine.vllm_config)
        self._format = page_format(connector.caches, groups, kind)
        if self._format.page_tokens != block_tokens:
            raise ModelUnsupported(
                f"vLLM keeps {self._format.page_tokens} tokens of this model in a block; "
                f"set kvstore.block_tokens={self._format.page_tokens}, not {block_tokens}"
            )
        self.layout: BlockLayout = self._format.block_layout(block_tokens)
        self.counts = TokenCounts()
        self._num_pages = config.num_blocks
        self._sampling = SamplingParams(temperature=0, max_tokens=1)
        self._names = count()
        self._running: set[str] = set()
        self._new_weights: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}
        """What was pushed, in host memory."""
        self._refuse_unless_it_computes()

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._format.dtype)
        return dtype

    @property
    def forwards(self) -> tuple[Forward, ...]:
        return ()

    def link(self, links: GroupLinks) -> None:
        pass

    def prefill(self, rows: Sequence[PrefillRow], feed: LayerFeed) -> Tensor:
        tokens = self.layout.block_tokens
        contexts = [row.hit_tokens + len(row.token_ids) for row in rows]
        pages = tuple(pages_in_turn([self.layout.num_blocks(context) for context in contexts]))
        new = tuple(len(own) * tokens - row.hit_tokens for own, row in zip(pages, rows, strict=True))
        shape = BatchShape(tuple(row.hit_tokens for row in rows), new)
        self._connector.sweep(Sweep(feed, shape, tokens, pages))
        try:
            # The hits' ids are not needed: their KV is there.
            ids = [[0] * row.hit_tokens + row.token_ids.tolist() for row in rows]
            logits = self._forward(ids, [row.hit_tokens for row in rows], pages)
        finally:
            self._connector.sweep(None)
        self.counts.prompt += sum(len(row.token_ids) for row in rows)
        return logits

    def new_buffer(self, shape: BatchShape) -> Tensor:
        elements = self.layout.token_bytes // self.dtype.itemsize
        size = (len(shape.hit_tokens), shape.columns, elements)
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    def make_pool(self, num_blocks: int) -> Tensor:
        """vLLM's cache: [layers, num_blocks or more, block_tokens, token_elements]."""
        caches = [self._connector.caches[name] for name in layers_in_order(self._connector.caches)]
        first, page = caches[0], caches[0].stride(0)
        tokens, layer = self.layout.block_tokens, self._num_pages * page
        places = [(cache.data_ptr() - first.data_ptr()) // first.itemsize for cache in caches]
        if places != [number * layer for number in range(len(caches))]:
            raise ModelUnsupported(
                f"vLLM puts the layers of its cache at {places[:3]}; engines=vllm knows caches whose layers "
                f"lie one after the other, {layer} elements each"
            )
        assert num_blocks <= self._num_pages, (num_blocks, self._num_pages)
        size = (self.layout.num_layers, self._num_pages, tokens, page // tokens)
        return torch.as_strided(first, size, (layer, page, page // tokens, 1))

    def begin_decode(self, row: DecodeRow) -> None:
        """Nothing is checked here: a prompt's bytes are, before they are copied."""

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        ids = [[0] * row.position + [row.token_id] for row in rows]
        logits = self._forward(ids, [row.position for row in rows], [tuple(row.block_table) for row in rows])
        self.counts.decode += len(rows)
        return logits

    def weight_sizes(self) -> dict[str, int]:
        return {name: tensor.nbytes for name, tensor in self._held.items()}

    def read_weights(self, names: Sequence[str]) -> list[NamedArray]:
        """As they were pushed. Nothing until then: an engine that starts has the model's own."""
        return [(name, self._held[name].numpy()) for name in names]

    def load_weights(self, bucket: Iterable[NamedArray]) -> None:
        experts = {name for name in map(_class_name, self._worker.get_model().modules()) if "MoE" in name}
        if experts:
            raise ModelUnsupported(
                f"vLLM 0.32 does not take new weights of experts in place ({', '.join(sorted(experts))}): "
                "what it computes afterwards is not what they say; train this model with engines=transformers"
            )
        self._new_weights.update((name, torch.tensor(array)) for name, array in bucket)

    def weights_loaded(self) -> None:
        """vLLM fuses and repacks weights: it wants all of a model at once, and what was pushed is kept."""
        if self._new_weights:
            self._held |= self._new_weights
            self._new_weights = {}
            others = other_weights(self._folder, self._held)
            self._worker.reload_weights(weights_iterator=chain(self._held.items(), others))
            _repack_tied(self._worker.get_model())

    def _refuse_unless_it_computes(self) -> None:
        """What its kernels cannot do (a head's size) vLLM says when it is to do it."""
        try:
            self._forward([[0]], [0], [(0,)])
        except RuntimeError as error:
            raise ModelUnsupported(f"vLLM cannot run this model on {self.device}: {error}") from error

    def _forward(
        self, ids: Sequence[list[int]], computed: Sequence[int], pages: Sequence[tuple[int, ...]]
    ) -> Tensor:
        """Logits of each context's last token, [rows, vocabulary]. Every row is new to vLLM's worker."""
        names = [f"r{next(self._names)}" for _ in ids]
        scheduled = {
            name: len(context) - before for name, context, before in zip(names, ids, computed, strict=True)
        }
        output = SchedulerOutput(
            scheduled_new_reqs=[
                NewRequestData(
                    req_id=name,
                    prompt_token_ids=context,
                    mm_features=[],
                    sampling_params=self._sampling,
                    pooling_params=None,
                    block_ids=(list(own),),
                    num_computed_tokens=before,
                    lora_request=None,
                )
                for name, context, before, own in zip(names, ids, computed, pages, strict=True)
            ],
            scheduled_cached_reqs=CachedRequestData.make_empty(),
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=sum(scheduled.values()),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            finished_req_ids=self._running,
            free_encoder_mm_hashes=[],
            kv_connector_metadata=NoPlan(),
        )
        self._running = set(names)
        self._worker.execute_model(output)
        state, self._worker.execute_model_state = self._worker.execute_model_state, None
        index = self._worker.input_batch.req_id_to_index
        # vLLM's tensor is one of its inference mode; this one may be changed.
        logits: Tensor = state.logits.clone().float()
        return logits[[index[name] for name in names]]


def _repack_tied(model: torch.nn.Module) -> None:
    """vLLM repacks a weight for the layer that it loads; one that shares it, a tied head, is left behind."""
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "weight", None), Tensor)]
    sharing = Counter(id(layer.weight) for layer in layers)
    for layer in layers:
        if sharing[id(layer.weight)] > 1:
            method: Any = layer.quant_method
            method.process_weights_after_loading(layer)


def _class_name(module: object) -> str:
    return type(module).__name__

"""DualPathConnector: vLLM's KV connector over this project's block store. The one address of vLLM here.

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "DualPathConnector", "kv_connector_module_path": "engines.vllm.connector",
        "kv_role": "kv_both", "kv_connector_extra_config": {"path": "/ssd/kv"}}'

vLLM makes one object beside its scheduler and one beside its cache; each method here hands on to that half
(engines.vllm.scheduler_side, engines.vllm.worker_side). See docs/vllm.md.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm

from engines.vllm.version import require_tested

require_tested(vllm.__version__)  # before a name is missing below

from vllm.config import VllmConfig  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # noqa: E402
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.v1.request import RequestStatus  # noqa: E402

from engines.errors import VllmRefused  # noqa: E402
from engines.vllm.block_service import BlockService  # noqa: E402
from engines.vllm.messages import StepPlan, StepReport  # noqa: E402
from engines.vllm.page_format import CacheGroup, PageFormat, page_format  # noqa: E402
from engines.vllm.page_kind import page_kind  # noqa: E402
from engines.vllm.scheduler_side import SchedulerSide  # noqa: E402
from engines.vllm.settings import store_config  # noqa: E402
from engines.vllm.worker_side import WorkerSide  # noqa: E402
from kvstore.keys import WeightsId, weights_id_after_update, weights_id_of_files  # noqa: E402

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass
class _Hello(KVConnectorHandshakeMetadata):
    page_format: PageFormat


@dataclass
class _Plan(KVConnectorMetadata):
    step: StepPlan


@dataclass
class _Report(KVConnectorWorkerMetadata):
    step: StepReport

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        raise AssertionError("one worker, one report")


class DualPathConnector(KVConnectorBase_V1):
    """See the module. Refuses, in one line, what it does not know."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        _refuse_parallel(vllm_config)
        self._page_tokens: int = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._store_config = store_config(transfer.kv_connector_extra_config, self._page_tokens)
        self._loads, self._saves = transfer.is_kv_consumer, transfer.is_kv_producer
        self._worker: WorkerSide | None = None
        self._page_format: PageFormat | None = None
        self._scheduler: SchedulerSide | None = None
        self._service: BlockService | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._base_weights = _weights_id(vllm_config.model_config)
            self._run_id, self._version = uuid.uuid4().hex, 0

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return True

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # -- worker --------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        config = self._kv_cache_config
        groups = [
            CacheGroup(type(group.kv_cache_spec).__name__, config.num_blocks, group.kv_cache_spec.block_size)
            for group in config.kv_cache_groups
        ]
        self._page_format = page_format(kv_caches, groups, page_kind(self._vllm_config))
        self._worker = WorkerSide(kv_caches, self._page_format, config.num_blocks)
        _warn_of_rotation(self._vllm_config, groups)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return None if self._page_format is None else _Hello(self._page_format)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, _Plan)
        self._its_worker.begin(connector_metadata.step)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._its_worker.start_loads()

    def wait_for_layer_load(self, layer_name: str) -> None:
        self._its_worker.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        self._its_worker.layer_ended(layer_name)

    def wait_for_save(self) -> None:
        self._its_worker.end()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return self._its_worker.take_ended() or None, None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._its_worker.take_bad_pages()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        report = self._its_worker.take_report()
        return _Report(report) if report else None

    # -- scheduler -----------------------------------------------------------------------------------

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """vLLM's cache is made, and its worker says what a page is: open the store."""
        (hello,) = metadata.values()
        assert isinstance(hello, _Hello)
        layout = hello.page_format.block_layout(self._store_config.block_tokens)
        self._service = BlockService(self._store_config, layout, self._base_weights)
        self._scheduler = SchedulerSide(
            self._service, hello.page_format.page_tokens, loads=self._loads, saves=self._saves
        )
        logger.info(
            "KV blocks of %d tokens, %d bytes each, in %s under weights %s",
            layout.block_tokens,
            layout.full_block_bytes,
            self._store_config.path,
            self._base_weights,
        )

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._scheduler is None or not _is_tokens_alone(request):
            return 0, False
        return self._scheduler.query(request, num_computed_tokens, request.cache_salt or ""), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.allocated(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        if self._scheduler is None:
            return _Plan(StepPlan())
        pages = scheduler_output.kv_connector_block_state.resolve_block_ids
        return _Plan(self._scheduler.plan(_computed_after(scheduler_output), lambda name: pages(name)[0]))

    def update_connector_output(self, connector_output: Any) -> None:
        report = connector_output.kv_connector_worker_meta
        if report is not None and self._scheduler is not None:
            self._scheduler.report(report.step)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is None:
            return False, None
        aborted = request.status is RequestStatus.FINISHED_ABORTED
        pages = [] if aborted else block_ids
        return self._scheduler.finished(request, request.num_computed_tokens, pages), None

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.has_late_saves

    def reset_cache(self) -> bool:
        """The weights have changed, or are taken to have: nothing stored until now is a hit any more."""
        if self._scheduler is not None and self._service is not None:
            self._version += 1
            self._scheduler.forget_all()
            self._service.renew(weights_id_after_update(self._base_weights, self._run_id, self._version))
        return True

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
        if self._service is not None:
            self._service.close()

    @property
    def _its_worker(self) -> WorkerSide:
        assert self._worker is not None, "vLLM registers its caches before the first step"
        return self._worker


def _computed_after(output: Any) -> Iterator[tuple[str, int]]:
    """Each scheduled request, and how many of its tokens have KV once this step has ended."""
    scheduled = output.num_scheduled_tokens
    for new in output.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens + scheduled[new.req_id]
    cached = output.scheduled_cached_reqs
    for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
        yield request_id, computed + scheduled[request_id]


def _is_tokens_alone(request: Any) -> bool:
    """Do its token ids say all that its KV depends on?"""
    return request.lora_request is None and not request.mm_features and request.prompt_embeds is None


def _warn_of_rotation(config: VllmConfig, groups: list[CacheGroup]) -> None:
    """What vLLM 0.32 itself caches for MLA on a CPU is right only with PyTorch's rotation."""
    on_cpu = config.device_config.device_type == "cpu"
    if not on_cpu or groups[0].spec != "MLAAttentionSpec":
        return
    if config.compilation_config.is_custom_op_enabled("rotary_embedding"):
        logger.warning(
            "vLLM's rotary kernel for CPUs turns the wrong tokens of an MLA cache: what it computes depends "
            'on how a prompt is cut; add --compilation-config \'{"custom_ops": ["-rotary_embedding", '
            '"-deepseek_scaling_rotary_embedding"]}\''
        )


def _refuse_parallel(config: VllmConfig) -> None:
    parallel = config.parallel_config
    if parallel.world_size > 1:
        raise VllmRefused(
            f"vLLM runs on {parallel.world_size} workers (tensor parallel {parallel.tensor_parallel_size}, "
            f"pipeline parallel {parallel.pipeline_parallel_size}); DualPathConnector knows one: start more "
            "servers instead"
        )


def _weights_id(model: Any) -> WeightsId:
    """Names the weights by their files; what changes their use changes the name."""
    folder = Path(model.model_weights or model.model)  # the first if it came from object storage
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))
    files = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
    if not files:
        raise VllmRefused(f"{folder} has no weight files ({', '.join(_WEIGHTS)}), so nothing names its KV")
    of_files = weights_id_of_files(files)
    use = f"{model.quantization or ''} {model.hf_overrides or ''}".strip()
    return weights_id_after_update(of_files, use, 0) if use else of_files

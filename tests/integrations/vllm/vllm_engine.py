"""A vLLM engine in this process, with or without the connector, and what it generates."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

PAGE_TOKENS = 32
OPS = ["-rotary_embedding", "-deepseek_scaling_rotary_embedding"]
"""PyTorch's rotation in place of vLLM 0.32's kernel for CPUs: that takes the stride of MLA's one key head for
a token's, so it turns other tokens than it should, and what is cached depends on how a prompt was cut."""
CONNECTOR = {"kv_connector": "DualPathConnector", "kv_connector_module_path": "engines.vllm.connector"}


@dataclass(frozen=True, slots=True)
class Generated:
    token_ids: list[int]
    logprobs: list[float]
    cached_tokens: int


@contextmanager
def vllm_engine(model: Path, store: Path | None = None, **extra: Any) -> Iterator[LLM]:
    """`extra`: keys of kv_connector_extra_config. Without a store: vLLM alone."""
    transfer = None
    if store is not None:
        transfer = KVTransferConfig(
            **CONNECTOR,
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"path": str(store), "staging_bytes": 64 << 20, "dram_bytes": 0}
            | extra,
        )
    llm = LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=8,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=64 << 20,
        block_size=PAGE_TOKENS if "gqa" in model.name else 16,
        distributed_executor_backend="uni",
        kv_transfer_config=transfer,
        compilation_config={"custom_ops": OPS},
    )
    try:
        yield llm
    finally:
        shut_down(llm)


def shut_down(llm: LLM | None = None) -> None:
    """Let another engine start in this process; None: after one that could not."""
    if llm is not None:
        llm.llm_engine.engine_core.shutdown()
    ensure_kv_transfer_shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()


def generate(llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int = 12) -> list[Generated]:
    """Greedy; logprobs as float32 prints them."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, logprobs=0)
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    return [
        Generated(
            list(output.outputs[0].token_ids),
            [next(iter(step.values())).logprob for step in output.outputs[0].logprobs],
            output.num_cached_tokens,
        )
        for output in llm.generate(asked, sampling, use_tqdm=False)
    ]


def connector_of(llm: LLM) -> Any:
    """The scheduler's half, in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler.connector

"""What runs in the engines' processes: the plain classes with their real resources opened.

Each class here is one process: it loads the model in its constructor, so that nothing big ever crosses a
process border. The node agent's process is in engines.node: it needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from engines.config import EnginesConfig
from engines.decode import DecodeEngine
from engines.engine import EngineParts
from engines.model.paced_runner import PacedRunner
from engines.model.paced_spec import PacedSpec
from engines.model.runner import ModelRunner
from engines.model.tokenizer import load_tokenizer
from engines.prefill import PrefillEngine
from engines.scheduling.settings import SchedulingSettings
from engines.stopping import Decoder, IdsOnly
from engines.types import EngineId, Weights
from kvstore.open_transport import TransportSpec, open_transport

_VLLM_ROWS = 256
"""Prompts that vLLM's worker makes room for in a prefill batch."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine's process opens."""

    config: EnginesConfig
    scheduling: SchedulingSettings
    model_path: str
    block_tokens: int
    transport: TransportSpec
    weights: Weights
    job_seed: int
    paced: PacedSpec | None = None
    """What a paced engine runs, in place of the model at model_path."""

    def open(self, kv_bytes: int) -> EngineParts:
        """Load the model and open the transport, in this process; `kv_bytes`: HBM for whole contexts."""
        runner, decoder = self._open_model(kv_bytes)
        return EngineParts(
            config=self.config,
            scheduling=self.scheduling,
            runner=runner,
            decoder=decoder,
            transport=open_transport(self.transport),
            weights=self.weights,
            job_seed=self.job_seed,
        )

    def _open_model(self, kv_bytes: int) -> tuple[ModelRunner, Decoder]:
        if self.config.kind == "paced":
            assert self.paced is not None, "a paced engine needs a PacedSpec"
            torch.set_num_threads(self.config.threads)
            return PacedRunner(self.paced, self.block_tokens, verify=not self.config.oracle), IdsOnly()
        if self.config.kind == "vllm":
            return self._open_vllm(kv_bytes), load_tokenizer(self.model_path)
        runner = open_runner(self.config, self.model_path, self.block_tokens)
        return runner, load_tokenizer(self.model_path)

    def _open_vllm(self, kv_bytes: int) -> ModelRunner:
        from engines.vllm.runner import BatchLimits, VllmRunner

        torch.set_num_threads(self.config.threads)
        return VllmRunner(
            self.model_path,
            self.block_tokens,
            dtype=self.config.dtype,
            device=resolve_device(self.config.device),
            kv_bytes=kv_bytes,
            most=BatchLimits(
                rows=max(_VLLM_ROWS, self.config.decode_max_requests),
                tokens=self.config.prefill_batch_tokens + self.config.decode_max_requests,
            ),
        )


class PrefillProcess(PrefillEngine):
    """A prefill engine with its model."""

    def __init__(self, engine_id: EngineId, spec: EngineSpec) -> None:
        super().__init__(engine_id, spec.open(spec.config.prefill_hbm_bytes))


class DecodeProcess(DecodeEngine):
    """A decode engine with its model."""

    def __init__(self, engine_id: EngineId, spec: EngineSpec) -> None:
        super().__init__(engine_id, spec.open(spec.config.decode_kv_bytes))


def open_runner(config: EnginesConfig, model_path: str, block_tokens: int) -> ModelRunner:
    """Load the model for inference, with as many torch threads as the configuration gives an engine."""
    # Not at the top: a paced engine's process need not hold transformers in memory.
    from engines.model.load import load_model
    from engines.model.transformers_runner import TransformersRunner

    torch.set_num_threads(config.threads)
    # Some images turn TF32 on by an environment variable; float32 means float32 here.
    torch.set_float32_matmul_precision("highest")
    device = resolve_device(config.device)
    return TransformersRunner(load_model(model_path, dtype=config.dtype, device=device), block_tokens)


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """`auto` is CUDA where this process sees a device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device

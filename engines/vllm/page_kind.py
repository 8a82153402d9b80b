"""What decides how a page of vLLM's cache looks inside: the attention backend and the processor."""

from __future__ import annotations

import platform

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backend


def page_kind(config: VllmConfig) -> str:
    """A short name; two servers with the same one may share blocks."""
    backend = str(get_current_attn_backend(config).get_name())
    if config.device_config.device_type != "cpu":
        return backend
    tiles = "+amx" if torch.cpu._is_amx_tile_supported() else ""
    return f"{backend} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}{tiles}"

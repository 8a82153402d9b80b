"""What a made profile says beside its KV and its times: nothing that a test depends on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engines.model.profile import ModelProfile

THE_REST: dict[str, Any] = {
    "max_context_tokens": 1 << 20,
    "active_parameters": 1e6,
    "attention_flops": (0.0, 1e3),
    "weights_bytes": (1e6, 0.0),
    "expert_parallel_gpus": 1,
    "gpu_memory_bytes": 1e9,
    "origins": {
        field.name: "assumed"
        for field in fields(ModelProfile)
        if field.name not in ("name", "origins", "tables_sha256")
    },
    "tables_sha256": None,
}

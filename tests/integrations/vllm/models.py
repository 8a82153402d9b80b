"""Random models that vLLM runs on a CPU, made in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen3Config

from tests.engines.tiny_models import VOCABULARY, byte_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,  # logits that differ: or damaged KV would go unnoticed
}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,  # vLLM's kernel for CPUs knows 512 + 64 only
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
}


def save_model(name: str, path: Path) -> Path:
    """A random model that vLLM runs on a CPU: `gqa`, the same with a `tied` head, or `mla`."""
    torch.manual_seed(0)
    is_mla = name == "mla"
    config = (
        DeepseekV3Config(**_COMMON, **_MLA)
        if is_mla
        else Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=32, tie_word_embeddings=name == "tied")
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    if is_mla:  # as DeepSeek's own folders say it
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"topk_method": "noaux_tc"}))
    return path

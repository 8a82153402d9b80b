"""Tiny random models of every cache shape the engines serve, built in a second, in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV32Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 320
NAMES = ("qwen2", "qwen3", "llama", "deepseek_v3", "deepseek_v32")

_GQA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
_MLA = _GQA | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
_DSA = {"index_n_heads": 4, "index_head_dim": 32, "index_topk": 16}


def tiny_config(name: str) -> PretrainedConfig:
    match name:
        case "qwen2":
            return Qwen2Config(**_GQA)
        case "qwen3":
            return Qwen3Config(**_GQA, head_dim=16)
        case "llama":
            return LlamaConfig(**_GQA)
        case "deepseek_v3":
            return DeepseekV3Config(**_MLA)
        case "deepseek_v32":
            return DeepseekV32Config(**_MLA, **_DSA)
    raise ValueError(name)


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name), attn_implementation="sdpa")
    return model.float().eval().requires_grad_(False)


def save_tiny_model(name: str, path: Path, seed: int = 0) -> Path:
    """A Hugging Face folder of the tiny model, with a byte-level tokenizer."""
    tiny_model(name, seed).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; its end-of-text id is the last of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

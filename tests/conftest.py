"""What every test shares: a quiet, offline, one-threaded process, and a tiny model folder."""

from __future__ import annotations

import os

# Set before any library reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
)

import signal
from pathlib import Path

import pytest

from tests import rdma_tests

if not rdma_tests.in_guest():  # none of its tests needs this, and the import takes seconds there
    from hypothesis import settings

    # How long an example takes says how busy the machine is.
    settings.register_profile("any-speed", deadline=None)
    settings.load_profile("any-speed")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores Ctrl-C, and so would all that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(rdma_tests.plugin())


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of 4 layers and hidden size 64 with a byte-level ChatML tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("tiny-qwen3")
    vocabulary_size = _save_tokenizer(folder)
    _save_model(folder, vocabulary_size)
    return folder


def _save_tokenizer(folder: Path) -> int:
    """One token a byte, no merges, then the special tokens; return how many there are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(byte_symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def _save_model(folder: Path, vocabulary_size: int) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    torch.set_rng_state(generator_state)

"""A language model of under a million parameters that reads single characters, as a Hugging Face folder.

It is the smallest model that still goes the way of any other: transformers loads model and tokenizer
from the folder. It knows no task; its alphabet is that of chain arithmetic.
"""

from __future__ import annotations

from pathlib import Path

from rollout.chain_arithmetic import ALPHABET, TURN_END

PAD = "_"

MAX_CONTEXT_TOKENS = 256


def make_char_model(directory: Path, seed: int) -> None:
    """Write a tokenizer and a randomly initialised Llama; the folder is made if it is not there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    directory.mkdir(parents=True, exist_ok=True)
    # Not Qwen2: for that model transformers takes its own tokenizer, whatever the folder says.
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        attention_bias=True,
        tie_word_embeddings=True,
        pad_token_id=ALPHABET.index(PAD),
        bos_token_id=None,
        eos_token_id=ALPHABET.index(TURN_END),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    save_char_tokenizer(directory)


def save_char_tokenizer(directory: Path) -> None:
    """Write a tokenizer with one token per character of ALPHABET; it refuses any other character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # No unknown token: an unknown character is an error, never a token.
    tokenizer = Tokenizer(models.WordLevel({char: index for index, char in enumerate(ALPHABET)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_CONTEXT_TOKENS,
    ).save_pretrained(directory)

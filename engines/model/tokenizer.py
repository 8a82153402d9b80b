"""Opens a model folder's tokenizer. Kept apart from the weights: agent workers need no torch.

A folder with a tokenizer.json is opened by the class that reads just that file, in a third of the time and
without importing torch; other folders go through transformers' own choice of class.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.errors import ModelUnsupported


def load_tokenizer(path: str) -> Any:
    """The folder's tokenizer; raises ModelUnsupported if it has none."""
    tokenizer = _open(path)
    if not tokenizer.encode("1"):
        raise ModelUnsupported(
            f"model.path={path} has no usable tokenizer (it knows no text); put the model's tokenizer "
            "files (tokenizer.json, tokenizer_config.json) beside its weights"
        )
    return tokenizer


def ordinary_token_ids(tokenizer: Any) -> list[int]:
    """The ids of the tokens that stand for text: no special and no added ones."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return sorted(set(tokenizer.get_vocab().values()) - special)


def end_token_ids(path: str) -> tuple[int, ...]:
    """The end tokens that the folder's generation config names; none where it has no such file or entry.

    Raises ModelUnsupported if the file cannot be read.
    """
    file = Path(path) / "generation_config.json"
    if not file.is_file():
        return ()
    try:
        named = json.loads(file.read_text()).get("eos_token_id")
        ids = named if isinstance(named, list) else [named]
        return tuple(int(token_id) for token_id in ids if token_id is not None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelUnsupported(
            f"model.path={path} has a generation_config.json that names no end tokens "
            f"({first_line(error)}); mend it or take it away"
        ) from error


def _open(path: str) -> Any:
    try:
        if (Path(path) / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnsupported(
            f"model.path={path} has no usable tokenizer ({first_line(error)}); put the model's "
            "tokenizer files (tokenizer.json, tokenizer_config.json) beside its weights"
        ) from error


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__

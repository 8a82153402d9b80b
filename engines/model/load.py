"""Opens a model folder: is it a causal language model these engines can serve, and where are its weights?

`inspect_model` reads only the configuration, so a job can refuse a bad folder before anything starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from engines.errors import ModelUnsupported
from engines.model.cache_format import refuse_unsupported_layers
from engines.model.tokenizer import first_line, load_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A local folder that passed inspection."""

    path: Path
    num_parameters_bytes: int
    """Bytes of the weight files."""
    num_layers: int
    max_context_tokens: int

    @property
    def weight_files(self) -> list[Path]:
        return _weight_files(self.path)


def inspect_model(path: str) -> ModelFolder:
    """Check the folder (or hub name) `path`; raises ModelUnsupported with one clear line."""
    folder = _local_folder(path)
    config = _read_config(folder)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelUnsupported(
            f"model.path={path} holds a {config.model_type} model, which is not a causal language "
            "model; give a folder whose model generates text token by token"
        )
    refuse_unsupported_layers(config.get_text_config(decoder=True))
    files = _weight_files(folder)
    if not files:
        raise ModelUnsupported(
            f"model.path={path} has no weight files (*.safetensors or *.bin); copy them there"
        )
    load_tokenizer(str(folder))
    text_config = config.get_text_config(decoder=True)
    return ModelFolder(
        path=folder,
        num_parameters_bytes=sum(file.stat().st_size for file in files),
        num_layers=text_config.num_hidden_layers,
        max_context_tokens=int(getattr(text_config, "max_position_embeddings", 0) or 2**31 - 1),
    )


def load_model(path: str, *, dtype: str, device: str) -> PreTrainedModel:
    """Load weights for inference."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=_DTYPES[dtype], attn_implementation="sdpa")
    return model.to(device).eval().requires_grad_(False)


def _local_folder(path: str) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    looks_like_hub_name = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_hub_name:
        raise ModelUnsupported(f"model.path={path} is not a folder; give a Hugging Face model folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelUnsupported(
            f"model.path={path} is neither a folder here nor a model the hub gave us ({first_line(error)})"
        ) from error


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnsupported(
            f"model.path={folder} is not a model transformers can open ({first_line(error)})"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    for suffix in _WEIGHT_SUFFIXES:
        files = sorted(folder.glob(f"*{suffix}"))
        if files:
            return files
    return []

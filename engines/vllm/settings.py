"""What a user may say in `kv_connector_extra_config`: the keys of the group `kvstore`, with conf/'s values.

A server that vLLM starts composes no configuration, so the files of conf/ are read here: kvstore/ssd.yaml,
then kvstore/vllm.yaml over it, then what the user says.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import TypeAdapter, ValidationError

from engines.errors import VllmRefused
from kvstore.config import StoreConfig
from kvstore.layout import MAX_BLOCK_TOKENS

_FILES = ("ssd", "vllm")
_MEANINGLESS = ("pack_bytes", "read_chunk_bytes", "read_depth", "read_report_s", "mooncake")
"""Keys of the group that say something of engines that vLLM's connector does not have."""


def store_config(said: Mapping[str, Any], page_tokens: int) -> StoreConfig:
    """The store's configuration for a cache whose pages hold `page_tokens` tokens.

    Raises VllmRefused, in one line, for a key or a value that cannot be.
    """
    values = _values_of_conf()
    allowed = sorted(values.keys() - {*_MEANINGLESS})
    for key in said:
        if key not in allowed:
            raise VllmRefused(f"kv_connector_extra_config has no key {key!r}; there are {', '.join(allowed)}")
    if not said.get("path"):
        raise VllmRefused(
            'kv_connector_extra_config names no store; give it a directory: {"path": "/ssd/kv"}'
        )
    values["block_tokens"] = _default_block_tokens(values["block_tokens"], page_tokens)
    try:
        config = TypeAdapter(StoreConfig).validate_python(values | dict(said))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VllmRefused(
            f"kv_connector_extra_config {where}: {first['msg']}, got {first['input']!r}"
            if where
            else f"kv_connector_extra_config: {first['msg'].removeprefix('Value error, ')}"
        ) from error
    if config.kind == "mooncake":
        raise VllmRefused("kv_connector_extra_config kind=mooncake: vLLM's connector keeps blocks in files")
    if config.block_tokens % page_tokens:
        raise VllmRefused(
            f"kv_connector_extra_config block_tokens={config.block_tokens} must be a multiple of vLLM's "
            f"block size {page_tokens} (--block-size)"
        )
    return config


def _default_block_tokens(wanted: int, page_tokens: int) -> int:
    """The fewest whole pages that make `wanted` tokens, as far as a block may grow."""
    most = MAX_BLOCK_TOKENS // page_tokens
    if not most:
        raise VllmRefused(
            f"vLLM's block size is {page_tokens} tokens and a stored block holds at most "
            f"{MAX_BLOCK_TOKENS}; start vLLM with --block-size {MAX_BLOCK_TOKENS} or less"
        )
    return min(most, -(-wanted // page_tokens)) * page_tokens


def _values_of_conf() -> dict[str, Any]:
    found = find_spec("rollout")
    assert found is not None
    assert found.submodule_search_locations, "the package ships with its conf/"
    folder = Path(found.submodule_search_locations[0]) / "conf" / "kvstore"
    values: dict[str, Any] = {}
    for name in _FILES:
        values |= yaml.safe_load((folder / f"{name}.yaml").read_text())
    values.pop("defaults")
    return values

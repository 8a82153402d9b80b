"""The weights in a model's folder that nobody has pushed.

vLLM takes new weights of a whole model or not at all: what it is not given of a fused layer is left as memory
was found. So what a push does not name is given with it, as the folder has it.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def other_weights(folder: Path, given: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each weight that is not `given`; nothing where the folder has no safetensors."""
    for file in _files(folder):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dict
                if name not in given:
                    yield name, weights.get_tensor(name)


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return [folder / _ONE_FILE] if (folder / _ONE_FILE).exists() else []

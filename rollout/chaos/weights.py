"""Weights of any version, made from the model's own: so every life of a run, and its judge, has the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

_STEP = 0.03
"""How far a version's weights are from the first, as a share of a standard normal."""


@cache
def model_of(path: str, version: int) -> PreTrainedModel:
    """The model at `version`; 0 is the one in the folder."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.train(False)
    if version:
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_STEP)
    return model


def weights_of(path: str, version: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Named weights, as RolloutBackend.update_weights takes them."""
    yield from model_of(path, version).named_parameters()

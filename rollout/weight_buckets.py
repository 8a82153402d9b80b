"""How a model's weights are cut into buckets for the way from trainer to engines.

Decides only which names travel together; it moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

WEIGHT_DTYPE = "float32"
"""Weights travel as float32: numpy has no bfloat16, and the widening is exact."""
WEIGHT_ITEM_BYTES = 4


class WeightSpec(NamedTuple):
    """One weight as it travels. Tied weights are one, under the name named_parameters gives."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * WEIGHT_ITEM_BYTES


def plan_buckets(weights: Iterable[WeightSpec], bucket_bytes: int) -> list[list[str]]:
    """Names in order, in buckets of at most `bucket_bytes`; a larger weight has one to itself."""
    if bucket_bytes < 1:
        raise ValueError(f"bucket_bytes must be >= 1, got {bucket_bytes}")
    buckets: list[list[str]] = []
    filled_bytes = bucket_bytes
    for weight in weights:
        if not buckets or filled_bytes + weight.num_bytes > bucket_bytes:
            buckets.append([])
            filled_bytes = 0
        buckets[-1].append(weight.name)
        filled_bytes += weight.num_bytes
    return buckets

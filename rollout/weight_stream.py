"""A model's weights on their way to the engines: any iterable of named tensors, cut into numpy buckets.

Whoever yields the weights may be asynchronous and may hold torch tensors. Where buckets go is not known here.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import numpy as np

from engines.model.runner import NamedArray

NamedTensors = Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]]
"""(name, tensor), torch or numpy, each whole."""


async def buckets(weights: NamedTensors, bucket_bytes: int) -> AsyncIterator[list[NamedArray]]:
    """Lists of about `bucket_bytes`; a larger weight has one to itself."""
    bucket: list[NamedArray] = []
    filled_bytes = 0
    async for name, tensor in _as_async(weights):
        array = tensor if isinstance(tensor, np.ndarray) else _to_numpy(tensor)
        if bucket and filled_bytes + array.nbytes > bucket_bytes:
            yield bucket
            bucket, filled_bytes = [], 0
        bucket.append((name, array))
        filled_bytes += array.nbytes
    if bucket:
        yield bucket


async def _as_async(items: NamedTensors) -> AsyncIterator[tuple[str, Any]]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """A host copy of a torch tensor; bfloat16, which numpy lacks, is widened exactly."""
    host = tensor.detach().cpu()
    return np.asarray(host.float().numpy() if host.is_floating_point() else host.numpy())

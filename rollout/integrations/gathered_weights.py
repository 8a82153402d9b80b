"""The weights of a model that someone else trains, whole, however DeepSpeed has cut them up.

Collective: every rank iterates to the end, and rank 0 alone is given weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rollout.trainer import gather_whole
from rollout.weight_buckets import WEIGHT_DTYPE, WeightSpec, plan_buckets

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_BUCKET_BYTES = 64 << 20


def gathered_weights(model: torch.nn.Module, *, is_first: bool) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Copies in float32, named as in the model, tied weights once; a bucket at a time is whole."""
    parameters = dict(model.named_parameters())
    specs = [WeightSpec(name, _whole_shape(weight), WEIGHT_DTYPE) for name, weight in parameters.items()]
    for names in plan_buckets(specs, _BUCKET_BYTES):
        yield from gather_whole({name: parameters[name] for name in names}, keep=is_first)


def _whole_shape(weight: torch.nn.Parameter) -> tuple[int, ...]:
    """ZeRO-3 leaves an empty tensor where a weight was, and beside it the shape it had."""
    return tuple(getattr(weight, "ds_shape", weight.shape))

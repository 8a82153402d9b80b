"""A small paced model, and what it must answer: its tokens are a function of the context's ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engines.cluster import ClusterSpec
from engines.model.kv_pattern import KVPattern, chain_start
from engines.model.paced_spec import PacedSpec
from engines.model.profile import ModelProfile
from engines.types import PromptKeys
from tests.engines.local_cluster import cluster_spec
from tests.engines.made_profile import THE_REST

PROFILE = ModelProfile(
    name="tiny",
    num_layers=3,
    kv_bytes=640,
    indexer_bytes=0,
    attention_s=(1e-5, 1e-7, 1e-10, 1e-9),
    rest_s=(1e-5, 1e-7),
    decode_s=(1e-4, 1e-6, 1e-9),
    decode_collective_s=(0.0, 0.0),
    collective_bytes=(0, 0),
    **THE_REST,
)
SPEC = PacedSpec(PROFILE, scale=10, time_scale=1)
"""64 bytes a token and layer."""


def paced_spec(store_directory: Path, **changes: object) -> ClusterSpec:
    """A one-process cluster of paced engines; `changes` go to the engines' configuration."""
    spec = cluster_spec("", store_directory, kind="paced", **changes)
    return replace(spec, paced=SPEC)


def next_id(keys: PromptKeys, ids: Sequence[int]) -> int:
    """The token that follows `ids`, which begin the context."""
    pattern = KVPattern(PROFILE.num_layers, SPEC.layer_bytes // 8)
    chain = pattern.chain(chain_start(keys), np.array(ids, np.int32))
    return int(pattern.next_ids(chain[-1:])[0])

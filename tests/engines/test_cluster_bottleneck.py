"""A cluster outside the bottleneck-free range is told so, with the link that binds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.cluster_bottleneck import bottleneck
from engines.cluster_config import ClusterConfig
from rollout import load_config
from tests.engines.local_cluster import ENGINES, NO_LIMITS

PAPER = ClusterConfig(6.25e9, 50e9, 62.5e9, h2d="cnic", traffic_classes=True)


@pytest.mark.parametrize("preset", ["local", "1p1d", "1p2d", "2p1d", "2p4d"])
def test_the_presets_have_no_bottleneck(preset: str) -> None:
    config = load_config([f"cluster={preset}"])
    assert bottleneck(config.engines, config.cluster) is None


@pytest.mark.parametrize(
    ("prefill_nodes", "decode_nodes", "memory_bytes_per_s", "words"),
    [
        (1, 8, None, "prefill CNIC writes would have to carry 1.12 times"),
        (4, 1, None, "decode CNIC writes would have to carry 1.12 times"),
        (2, 1, 40e9, "decode node DRAM would have to carry 1.09 times"),
    ],
)
def test_the_link_that_binds_is_named(
    prefill_nodes: int, decode_nodes: int, memory_bytes_per_s: float | None, words: str
) -> None:
    rates = replace(PAPER, memory_bytes_per_s=memory_bytes_per_s)
    shape = replace(ENGINES, prefill_nodes=prefill_nodes, decode_nodes=decode_nodes)
    assert words in (bottleneck(shape, rates) or "")


def test_a_cluster_without_rates_is_not_judged() -> None:
    assert bottleneck(replace(ENGINES, decode_nodes=100), NO_LIMITS) is None

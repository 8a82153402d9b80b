"""Rates of a cluster's links: bounds and scaling."""

from __future__ import annotations

import math

import pytest

from engines.cluster_config import ClusterConfig

RATES = ClusterConfig(10.0, 80.0, None, h2d="cnic", traffic_classes=True)


def test_scaling_multiplies_every_rate_and_leaves_no_limit_none() -> None:
    assert RATES.scaled(2.5) == ClusterConfig(25.0, 200.0, None, h2d="cnic", traffic_classes=True)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_no_scale_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor > 0"):
        RATES.scaled(factor)


@pytest.mark.parametrize("rate", [0, -1.0, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused_and_the_remedy_named(rate: float) -> None:
    with pytest.raises(ValueError, match=r"cnic_bytes_per_s must be > 0 .* null for no limit; got"):
        ClusterConfig(1.0, rate, None, h2d="copy", traffic_classes=True)

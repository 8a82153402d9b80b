from __future__ import annotations

import pytest

from tests.engines.scheduling.turns import settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("group_nodes", -1),
        ("fetch_period_s", -0.1),
        ("fetch_max_requests", 0),
        ("read_queue_limit_s", float("inf")),
        ("decode_balance_factor", 0.9),
        ("read_memory_s", -1),
        ("rebalance_gain", 1.0),
        ("rebalance_min_blocks", 0),
        ("attention_quota_s", 0),
        ("estimate_forgetting", 1.1),
        ("estimate_forgetting", 0),
        ("estimate_prior_weight", -1),
        ("estimate_outlier_factor", 1.0),
        ("order_aging_s", -1),
    ],
)
def test_a_value_out_of_bounds_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        settings(**{field: value})


def test_the_read_queues_limit_in_seconds_becomes_tokens_of_the_nic() -> None:
    # The paper's figures: 50 GB/s, 40,016 bytes a token.
    assert settings().read_queue_limit_tokens(50e9, 40_016) == 3_748_500

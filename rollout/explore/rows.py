"""The rows of scripts/explore_cluster, by name."""

from __future__ import annotations

from rollout.explore.nic_balance import nic_balance
from rollout.explore.policies import dram_tier, orders, split_plan, tool_waits, traces
from rollout.explore.sweeps import division, kv_bytes, snic_rate
from rollout.reproduce.rows import Row

ROWS: dict[str, Row] = {
    "kv_bytes": kv_bytes,
    "snic_rate": snic_rate,
    "division": division,
    "nic_balance": nic_balance,
    "split_plan": split_plan,
    "orders": orders,
    "dram_tier": dram_tier,
    "tool_waits": tool_waits,
    "traces": traces,
}

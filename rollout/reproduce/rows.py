"""The rows of scripts/reproduce_paper, by name, the quick ones first."""

from __future__ import annotations

from collections.abc import Callable

from rollout.reproduce.ablation import ablation
from rollout.reproduce.append_scaling import append_scaling
from rollout.reproduce.balance import balance
from rollout.reproduce.cache_compute import cache_compute
from rollout.reproduce.desk import Desk
from rollout.reproduce.free_range import bottleneck_free_range
from rollout.reproduce.large_scale import large_scale, scale_out
from rollout.reproduce.node_ratio import node_ratio
from rollout.reproduce.offline import offline
from rollout.reproduce.online import online
from rollout.reproduce.other_inputs import other_inputs

Row = Callable[[Desk], None]
ROWS: dict[str, Row] = {
    "cache_compute": cache_compute,
    "free_range": bottleneck_free_range,
    "node_ratio": node_ratio,
    "balance": balance,
    "ablation": ablation,
    "offline": offline,
    "append_scaling": append_scaling,
    "other_inputs": other_inputs,
    "scale_out": scale_out,
    "online": online,
    "large_scale": large_scale,
}
LONG = ("large_scale",)
"""Rows that run only where they are asked for by name."""

"""JCT over KV bytes per token, the rate of storage NICs, and the division of nodes, for every read plan.

Where does dual path stop mattering? The base is the paper's 2P4D with DeepSeek-V3.2; one thing varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rollout.explore.steps import ONE_PATH, OURS, PLANS
from rollout.reproduce.case import Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison

BASE = Case("dsv32_660b", "paper-32k", 2, 4, 512, OURS)
_LAYERS = 61
_KV_BYTES = (16, 48, 168, 656, 1640, 4920)
"""Of a token in one layer: 1 KB to 300 KB in all."""
_SNIC_BYTES_PER_S = (12.5e9, 25e9, 50e9, 100e9, 200e9)
"""Of a node's storage NIC."""
_NODE_GPUS = 8
_SPLITS = ((2, 6), (2, 4), (3, 5), (4, 4), (5, 3), (6, 2))
_MATTERS = 1.05


def kv_bytes(desk: Desk) -> None:
    cases = {
        each * _LAYERS / 1000: replace(BASE, overrides=(f"model_profile.kv_bytes={each}",))
        for each in _KV_BYTES
    }
    gains = _sweep(desk, "kv_bytes", "KB of KV a token", cases, log_x=True)
    matters = [x for x, gain in gains if gain >= _MATTERS]
    if matters:
        desk.tell(
            Comparison(
                "kv_bytes",
                "least_that_matters",
                f"{BASE.setup}; split takes {_MATTERS - 1:.0%} off one path's JCT or more",
                min(matters),
                "KB a token",
            )
        )


def snic_rate(desk: Desk) -> None:
    cases = {
        rate / 1e9: replace(BASE, overrides=(f"cluster.snic_bytes_per_s={rate / _NODE_GPUS}",))
        for rate in _SNIC_BYTES_PER_S
    }
    _sweep(desk, "snic_rate", "GB/s of a node's storage NIC", cases, log_x=True)


def division(desk: Desk) -> None:
    cases = {
        prefill / decode: replace(BASE, prefill_nodes=prefill, decode_nodes=decode)
        for prefill, decode in _SPLITS
        if prefill + decode == sum(_SPLITS[0])
    }
    _sweep(desk, "division", "prefill nodes per decode node, of 8 nodes", cases, log_x=True)


def _sweep(
    desk: Desk, row: str, x: str, cases: dict[float, Case], *, log_x: bool
) -> Sequence[tuple[float, float]]:
    """Simulate every plan; JCT of one path over split's, by x."""
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in PLANS}
    table: list[dict[str, Any]] = []
    gains = []
    for at, case in cases.items():
        jct_s = {name: desk.runner.jct_s(case.served(step)) for name, step in PLANS.items()}
        for name, value in jct_s.items():
            lines[name].append((at, value))
        held_up = {name: desk.runner.run(case.served(step)).bottleneck for name, step in PLANS.items()}
        table.append({x: at, **jct_s, "held up by": held_up})
        gain = desk.runner.jct_s(case.served(ONE_PATH)) / desk.runner.jct_s(case.served(OURS))
        gains.append((at, gain))
        desk.tell(
            Comparison(row, f"one_path_over_split_at_{at:.3g}", f"{case.setup}, {x} {at:.3g}", gain, "x")
        )
    desk.series[row] = {
        "x": x,
        "y": "job completion time (s)",
        "log_x": log_x,
        "lines": lines,
        "table": table,
    }
    return gains

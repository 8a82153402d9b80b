"""The links of the cluster a run stands for: how fast they are, and what is charged to them.

Meaning and bounds, no values: those live in conf/cluster/. On real hardware every rate is null: the NICs
themselves are the limit. The presets give a node one engine and one eighth of the paper's node, so all its
ratios stay (DualPath, arXiv 2602.21548, sections 4.2 and 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

_RATES = ("snic_bytes_per_s", "cnic_bytes_per_s", "memory_bytes_per_s")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The group `cluster` of the configuration. A rate is of one link, one direction; null: no limit."""

    snic_bytes_per_s: float | None
    """Of a node's storage NIC, each way."""
    cnic_bytes_per_s: float | None
    """Of an engine's compute NIC, each way."""
    memory_bytes_per_s: float | None
    """Of a node's DRAM, reads and writes together. Limits nothing: it only tells which link binds."""
    h2d: Literal["cnic", "copy"]
    """How KV moves between a node's DRAM and its engine. `cnic`: through the engine's own compute NIC, which
    is charged for it (DualPath, section 5), and makes the copies itself with transport=verbs; `copy`: by the
    copy engines, which costs the NIC nothing."""
    traffic_classes: bool
    """Whether a NIC serves MODEL traffic before KV traffic, as it should. false: in the order it comes."""

    def __post_init__(self) -> None:
        for name in _RATES:
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, or null for no limit; got {rate}")

    def scaled(self, factor: float) -> ClusterConfig:
        """The same cluster with every rate times `factor`; no limit stays none."""
        if not 0 < factor < math.inf:
            raise ValueError(f"rates can be scaled by a factor > 0, got {factor}")
        rates = {name: getattr(self, name) for name in _RATES}
        return replace(self, **{name: rate and rate * factor for name, rate in rates.items()})

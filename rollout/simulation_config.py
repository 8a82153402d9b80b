"""What can be configured about simulated runs: meaning and bounds, no values (those live in conf/)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.bounds import require_above, require_at_least


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """The cluster of job=simulate and job=plan, beside what `engines`, `cluster` and `kvstore` say of it."""

    gpus_per_node: int
    """GPUs of a simulated node. The presets of `cluster` describe one eighth of the paper's node, with one
    engine; all that a node has is multiplied until it has so many. 1: a preset as it is, which a paced run
    can be compared with."""
    storage_bytes_per_s: float | None
    """What the whole store gives, reads and writes each; null: no limit."""
    dram_bytes: int
    """DRAM of a prefill node that keeps blocks read lately, beside its staging memory and what
    kvstore.dram_bytes takes of that."""
    copy_bytes_per_s: float | None
    """Of a GPU's copy engine, each way, where cluster.h2d=copy; null: no limit."""
    sharing: Literal["closed_form", "max_min"]
    """How transfers share links: set when a step begins, or max-min fair at any time, which is slow."""
    horizon_s: float | None
    """Virtual seconds after which the simulation ends, whatever is left; null: when all agents are done."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "gpus_per_node")
        require_at_least(self, 0, "dram_bytes")
        require_above(self, 0, "storage_bytes_per_s", "copy_bytes_per_s", "horizon_s")


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """What job=plan may spend, of the cluster and of time."""

    nodes: int | None
    """Nodes to divide into prefill and decode nodes. null: as many as `engines` has of both."""
    best: int
    """Divisions to tell of."""
    simulations: int
    """Most divisions to simulate; where there are more, those around the best one so far come first."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "nodes")
        require_at_least(self, 1, "best", "simulations")

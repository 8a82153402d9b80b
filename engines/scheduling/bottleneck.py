"""Whether a cluster's storage NICs can all be used at once, and which link gives out first if not.

Pure policy, DualPath (arXiv 2602.21548, section 4.2): every storage NIC reads at its rate, half and half
balanced over the engines, hit KV only. A link is what its steps ask of it over what it carries; above 1 it
binds. The paper takes one rate for all storage NICs and says that a prefill engine's CNIC reads are always
within it; here the sides may differ, and that link is counted like the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """Nodes, engines and rates. Raises ValueError, naming the field, for anything not above 0."""

    prefill_nodes: int
    decode_nodes: int
    prefill_engines_per_node: int
    decode_engines_per_node: int
    cnic_bytes_per_s: float
    """Of an engine's compute NIC, each way."""
    prefill_snic_bytes_per_s: float
    """Of a prefill node's storage NIC."""
    decode_snic_bytes_per_s: float
    memory_bytes_per_s: float | None
    """Of a node's DRAM, reads and writes together. None: enough."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be above 0, got {value}")


@dataclass(frozen=True, slots=True)
class LinkUse:
    """What all storage NICs at their rate ask of one link."""

    link: str
    utilisation: float
    """Asked over carried; above 1 the link binds."""


def link_uses(shape: ClusterShape) -> tuple[LinkUse, ...]:
    """Every link of section 4.2, the most used first."""
    prefill_bytes = shape.prefill_snic_bytes_per_s
    decode_bytes = shape.decode_snic_bytes_per_s
    # What the other side's NICs bring to one node.
    from_prefill = prefill_bytes * shape.prefill_nodes / shape.decode_nodes
    from_decode = decode_bytes * shape.decode_nodes / shape.prefill_nodes
    prefill_cnics = shape.cnic_bytes_per_s * shape.prefill_engines_per_node
    decode_cnics = shape.cnic_bytes_per_s * shape.decode_engines_per_node
    memory = math.inf if shape.memory_bytes_per_s is None else shape.memory_bytes_per_s
    uses = (
        LinkUse("prefill CNIC reads", 2 * prefill_bytes / prefill_cnics),
        LinkUse("prefill CNIC writes", (prefill_bytes + from_decode) / prefill_cnics),
        LinkUse("decode CNIC reads", (from_prefill + 2 * decode_bytes) / decode_cnics),
        LinkUse("decode CNIC writes", (2 * from_prefill + decode_bytes) / decode_cnics),
        LinkUse("prefill node DRAM", 2 * prefill_bytes / memory),
        LinkUse("decode node DRAM", (3 * decode_bytes + 2 * from_prefill) / memory),
    )
    return tuple(sorted(uses, key=lambda use: -use.utilisation))


def binding_link(shape: ClusterShape) -> LinkUse | None:
    """The link that gives out first, or None inside the bottleneck-free range."""
    most_used = link_uses(shape)[0]
    return most_used if most_used.utilisation > 1 else None


def free_range(shape: ClusterShape) -> tuple[float, float]:
    """Lowest and highest prefill nodes per decode node without a bottleneck, all else as in `shape`.

    Empty (lowest above highest) where a link binds whatever the ratio.
    """
    prefill_bytes = shape.prefill_snic_bytes_per_s
    decode_bytes = shape.decode_snic_bytes_per_s
    prefill_cnics = shape.cnic_bytes_per_s * shape.prefill_engines_per_node
    decode_cnics = shape.cnic_bytes_per_s * shape.decode_engines_per_node
    memory = math.inf if shape.memory_bytes_per_s is None else shape.memory_bytes_per_s
    if 2 * prefill_bytes > min(prefill_cnics, memory):
        return math.inf, 0.0
    lowest = decode_bytes / (prefill_cnics - prefill_bytes)
    highest = min(
        (decode_cnics - 2 * decode_bytes) / prefill_bytes,
        (decode_cnics - decode_bytes) / (2 * prefill_bytes),
        (memory - 3 * decode_bytes) / (2 * prefill_bytes),
    )
    return lowest, highest

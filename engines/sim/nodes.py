"""The nodes of a simulated cluster: their links, and the room in their staging memory. Counts, no slots."""

from __future__ import annotations

import math

from engines.sim.link import Link
from engines.sim.spec import SimSpec
from engines.types import EngineRole, NodeId


class SimNode:
    """One node, all of whose GPUs have one role."""

    def __init__(self, spec: SimSpec, index: int, role: EngineRole, store: Link) -> None:
        cluster, rates = spec.cluster, spec.cluster.rates
        self.index = index
        self.role = role
        self.node_id = NodeId(f"{role}-{index:04d}")
        self.store = store
        self.snic_in = Link(f"{role} SNIC", rates.snic_bytes_per_s or math.inf)
        self.snic_out = Link(f"{role} SNIC writes", rates.snic_bytes_per_s or math.inf)
        self.dram = Link(f"{role} node DRAM", rates.memory_bytes_per_s or math.inf)
        cnic = rates.cnic_bytes_per_s or math.inf
        rails = range(cluster.gpus_per_node)
        self.cnic_out = [Link(f"{role} CNIC reads", cnic) for _ in rails]
        """By rail: a GPU reaches another node through that node's NIC of its own number."""
        self.cnic_in = [Link(f"{role} CNIC writes", cnic) for _ in rails]
        self.copy_in = [Link(f"{role} copies", cluster.copy_bytes_per_s or math.inf) for _ in rails]
        """Copy engines, which are used where host-device copies do not pass the compute NIC."""
        self._copies_pass_cnic = rates.h2d == "cnic"
        is_prefill = role is EngineRole.PREFILL
        staging_bytes = cluster.prefill_staging_bytes if is_prefill else cluster.decode_staging_bytes
        self.num_blocks = staging_bytes // spec.block_bytes
        self.free_blocks = self.num_blocks

    def copy_links(self, rail: int) -> tuple[Link, ...]:
        """What a copy from the node's DRAM to a GPU's HBM passes, DRAM aside."""
        if self._copies_pass_cnic:
            return self.cnic_out[rail], self.cnic_in[rail]
        return (self.copy_in[rail],)

    def links(self) -> tuple[Link, ...]:
        return (self.snic_in, self.snic_out, self.dram, *self.cnic_out, *self.cnic_in, *self.copy_in)


def build_nodes(spec: SimSpec) -> tuple[list[SimNode], Link]:
    """All nodes, prefill nodes first, and the store's reads."""
    store = Link("storage", spec.cluster.storage_bytes_per_s or math.inf)
    roles = [EngineRole.PREFILL] * spec.cluster.prefill_nodes + [
        EngineRole.DECODE
    ] * spec.cluster.decode_nodes
    return [SimNode(spec, index, role, store) for index, role in enumerate(roles)], store

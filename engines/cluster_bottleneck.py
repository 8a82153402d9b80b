"""Says which link keeps a cluster's storage NICs from being used together, if its rates are known."""

from __future__ import annotations

from engines.cluster_config import ClusterConfig
from engines.config import EnginesConfig
from engines.scheduling.bottleneck import ClusterShape, binding_link


def bottleneck(engines: EnginesConfig, rates: ClusterConfig) -> str | None:
    """One line for the user; None inside the bottleneck-free range, or where a NIC has no rate."""
    if rates.snic_bytes_per_s is None or rates.cnic_bytes_per_s is None:
        return None
    shape = ClusterShape(
        prefill_nodes=engines.prefill_nodes,
        decode_nodes=engines.decode_nodes,
        prefill_engines_per_node=engines.prefill_engines_per_node,
        decode_engines_per_node=engines.decode_engines_per_node,
        cnic_bytes_per_s=rates.cnic_bytes_per_s,
        prefill_snic_bytes_per_s=rates.snic_bytes_per_s,
        decode_snic_bytes_per_s=rates.snic_bytes_per_s,
        memory_bytes_per_s=rates.memory_bytes_per_s,
    )
    link = binding_link(shape)
    if link is None:
        return None
    return (
        f"the cluster cannot use all its storage NICs at once: {link.link} would have to carry "
        f"{link.utilisation:.2f} times what they can; change cluster.* or the numbers of nodes"
    )

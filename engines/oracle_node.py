"""The node agent of an oracle (engines.oracle): the same messages, slots and books, and no storage."""

from __future__ import annotations

from dataclasses import replace

from engines.measured import NodeBytes
from engines.node import NodeAgent, NodeNics
from engines.node_reads import ReadRules
from engines.types import NodeId
from kvstore.config import StoreConfig
from kvstore.layout import BlockLayout
from kvstore.null_store import NullStore
from kvstore.open_transport import TransportSpec, open_region_server
from kvstore.staging import StagingMemory


class OracleNode(NodeAgent):
    """In place of a NodeProcess, made from the same. It touches no directory, and its storage NIC, which
    carries nothing, limits nothing."""

    def __init__(
        self,
        node_id: NodeId,
        config: StoreConfig,
        layout: BlockLayout,
        directory: str,
        writer_id: str,
        transport: TransportSpec,
        nics: NodeNics,
    ) -> None:
        staging = StagingMemory.create(node_id, layout, config.staging_bytes // layout.slot_bytes)
        rates = replace(nics.rates, snic_bytes_per_s=None)
        limiter = NodeNics(rates, nics.num_cnics).open(node_id)
        server, rules = open_region_server(transport), ReadRules.of(config)
        super().__init__(node_id, NullStore(layout), staging, rules, server, limiter)

    async def moved(self) -> NodeBytes:
        return NodeBytes()

    async def storage_traffic(self) -> dict[str, int]:
        return dict.fromkeys(await super().storage_traffic(), 0)

    async def nic_bytes(self) -> dict[str, int]:
        passed = await super().nic_bytes()
        return {name: 0 if name.startswith("snic/") else nbytes for name, nbytes in passed.items()}

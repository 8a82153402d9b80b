"""Which engines there are, on which nodes, and what the largest request is that they could ever serve."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from engines.errors import RequestRefused
from engines.loans import Loans
from engines.types import EngineId, EngineInfo, EngineRole, NodeId, TurnRequest


@dataclass(frozen=True, slots=True)
class _Room:
    """What the largest request may need."""

    slots: int
    sides: int
    """Of a turn that may lie on one node: 2 where a node has both roles."""
    kv_tokens: int


class Roster:
    """One per scheduler. An engine that does not answer is still on it."""

    def __init__(self, loans: Loans) -> None:
        self._loans = loans
        self._nodes: list[NodeId] = []
        self._engines: dict[EngineId, EngineInfo] = {}
        self._room: _Room | None = None

    def add_node(self, node_id: NodeId) -> None:
        """A node whose slots can be lent."""
        if node_id not in self._nodes:
            self._nodes.append(node_id)
        self._room = None

    def has_node(self, node_id: NodeId) -> bool:
        return node_id in self._nodes

    def has_engine(self, engine_id: EngineId) -> bool:
        return engine_id in self._engines

    def add(self, info: EngineInfo) -> None:
        """One more engine, after its node, and after it has got slots of its own."""
        self._engines[info.engine_id] = info
        self._room = None

    def engine(self, engine_id: EngineId) -> EngineInfo:
        return self._engines[engine_id]

    def among(self, parts: Collection[str]) -> frozenset[EngineId]:
        """Engines that are named there, or whose node is."""
        return frozenset(
            info.engine_id
            for info in self._engines.values()
            if info.engine_id in parts or info.node_id in parts
        )

    def refuse_misfits(self, request: TurnRequest, block_tokens: int) -> None:
        """Raise RequestRefused for a request that would not even fit an empty cluster."""
        room = self._largest_room()
        needed = room.sides * -(-request.prompt_tokens // block_tokens)
        if needed > room.slots:
            raise RequestRefused(
                f"{request.request_id} needs {needed} staging slots for its {request.prompt_tokens} "
                f"prompt tokens, the smallest node lends {room.slots}; raise kvstore.staging_bytes"
            )
        if request.context_tokens > room.kv_tokens:
            raise RequestRefused(
                f"{request.request_id} may grow to {request.context_tokens} tokens, the largest decode "
                f"engine holds {room.kv_tokens}; raise engines.decode_kv_bytes"
            )

    def _largest_room(self) -> _Room:
        if self._room is None:
            engines = self._engines.values()
            nodes = {role: {info.node_id for info in engines if info.role is role} for role in EngineRole}
            self._room = _Room(
                min(self._loans.node(node_id).num_lendable for node_id in self._nodes),
                2 if nodes[EngineRole.PREFILL] & nodes[EngineRole.DECODE] else 1,
                max((info.kv_tokens for info in engines if info.role is EngineRole.DECODE), default=0),
            )
        return self._room

"""Which engine of a group takes a turn, and the pair of them that it ends up with."""

from __future__ import annotations

from dataclasses import dataclass

from engines.scheduling.queued_turn import QueuedTurn
from engines.types import EngineId, NodeId


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """One engine for one turn."""

    turn: QueuedTurn
    group_id: str
    engine_id: EngineId
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class EnginePair:
    """Both engines of a turn: its blocks can be read now."""

    turn: QueuedTurn
    prefill: EngineChoice
    decode: EngineChoice

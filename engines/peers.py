"""What the engines ask of one another, as Protocols.

The plain classes of this room satisfy them, and so do the proxies of their actors: a caller cannot tell. A
call that its peer does not answer raises EngineFailed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

from engines.read_messages import BlockLoad, LoadId, LostBlock, MovedBlock, MoveOrder, ReadAnswer, ReadReport
from engines.types import (
    AnnouncedBlock,
    BlockPersist,
    FirstToken,
    GenerateResult,
    HandOver,
    HitLost,
    NodeId,
    Placement,
    PrefillJob,
    ReadSide,
    RequestId,
    SlotId,
    SlotRelease,
    TurnRequest,
    Weights,
)
from kvstore.keys import BlockKey, WeightsId
from kvstore.store import BlockLocation, BlockReadResult


class SchedulerPeer(Protocol):
    """The scheduler, as engines and clients call it."""

    async def submit(self, request: TurnRequest) -> Placement: ...

    async def report_reads(self, report: ReadReport) -> tuple[MoveOrder, ...]: ...

    async def prefilled(
        self, request_id: RequestId, moved: Sequence[MovedBlock] = (), forward_times: Sequence[float] = ()
    ) -> None: ...

    async def release_slots(self, request_id: RequestId, slots: Sequence[SlotId]) -> None: ...

    async def finish(
        self, request_id: RequestId, *, resolved: bool = True, safe_nodes: frozenset[NodeId] = frozenset()
    ) -> None: ...

    async def absent(self, seen: int, wait_s: float) -> tuple[int, frozenset[str]]: ...

    async def begin_wait(
        self, request_id: RequestId, keys: Sequence[BlockKey], weights_version: int
    ) -> None: ...

    async def end_wait(self, request_id: RequestId) -> None: ...

    async def stored(self, keys: Sequence[BlockKey]) -> tuple[BlockKey, ...]: ...

    async def expect(
        self, keys: Sequence[BlockKey], weights_id: WeightsId, request_id: RequestId | None = None
    ) -> tuple[BlockKey, ...]: ...

    async def announce(
        self,
        stored: Sequence[AnnouncedBlock],
        failed: Sequence[BlockKey],
        weights_id: WeightsId,
        released: SlotRelease | None = None,
    ) -> None: ...

    async def hit_lost(self, request_id: RequestId, lost: Sequence[LostBlock]) -> None: ...

    async def settled(self, node_id: NodeId, slots: Sequence[SlotId]) -> None: ...

    async def weights(self) -> Weights: ...


class NodePeer(Protocol):
    """A node agent, as the engines of its node call it; prefill engines have others read for them too."""

    async def load(
        self, request_id: RequestId, loads: Sequence[BlockLoad], side: ReadSide, deadline_s: float
    ) -> ReadAnswer: ...

    async def rest(self, load_id: LoadId) -> ReadAnswer: ...

    async def drop(self, request_id: RequestId) -> None: ...

    async def let_go(self, request_id: RequestId, slots: Sequence[SlotId]) -> bool: ...

    async def read_ahead(
        self, loads: Sequence[BlockLoad], deadline_s: float
    ) -> tuple[BlockReadResult | None, ...]: ...

    async def persist(
        self, blocks: Sequence[BlockPersist], weights_id: WeightsId, deadline_s: float
    ) -> tuple[BlockLocation | None, ...]: ...


class PrefillPeer(Protocol):
    """A prefill engine, as clients call it."""

    async def prefill(self, job: PrefillJob) -> FirstToken | HitLost: ...

    async def set_absent(self, absent: frozenset[str]) -> None: ...

    async def abort(self, request_id: RequestId) -> frozenset[NodeId]: ...


class DecodePeer(Protocol):
    """A decode engine, as prefill engines and clients call it."""

    async def hand_over(self, turn: HandOver) -> None: ...

    async def generate(self, request_id: RequestId) -> GenerateResult: ...

    async def generated(self, request_id: RequestId, seen: int, wait_s: float) -> array[int] | None: ...

    async def abort(self, request_id: RequestId) -> None: ...

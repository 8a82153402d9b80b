"""Parts that misbehave on purpose, and the way to put them into a one-process cluster.

They wrap the real part behind its own seam (BlockStore, Transport, ModelRunner, a peer), so what lies between
them is the product. `Parts` says which part of a cluster is wrapped in what.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from engines.client import EngineClient
from engines.context import Context
from engines.decode import DecodeEngine
from engines.engine import Engine
from engines.errors import EngineFailed
from engines.model.runner import DecodeRow
from engines.node import NodeAgent, NodeNics, NodeProcess
from engines.node_reads import ReadRules
from engines.prefill import PrefillEngine
from engines.processes import DecodeProcess, EngineSpec, PrefillProcess
from engines.types import EngineId, HandOver, NodeId, RequestId, SamplingParams, SlotId, TurnResult
from kvstore.errors import TransferError
from kvstore.files import Files
from kvstore.open_store import open_store
from kvstore.open_transport import TransportSpec, open_region_server
from kvstore.staging import StagingMemory
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockStore, BlockWrite
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle, TransferList, Transport
from tests.engines.tiny_models import VOCABULARY

PATIENCE_S = 30.0
Wrap = Callable[[Any, str], Any]


def _as_it_is(part: Any, name: str) -> Any:
    return part


@dataclass
class Parts:
    """Wrappers of a cluster's parts; each gets the real part and the name of its node or engine."""

    store: Wrap = _as_it_is
    files: Mapping[str, Files] = field(default_factory=dict)
    """By node, what its store makes its system calls through; the others use the operating system's."""
    transport: Wrap = _as_it_is
    runner: Wrap = _as_it_is
    peer: Wrap = _as_it_is
    """Scheduler, node agents and engines, as others call them."""
    copies: GatedCopies = field(default_factory=lambda: GatedCopies())
    """Of prompts into the pools of decode engines."""

    async def spawn(
        self,
        cls: type,
        *args: Any,
        name: str,
        node: NodeId | None,
        gpu: bool = False,
        restarts: bool = False,
        **kwargs: Any,
    ) -> Any:
        part: Any
        if cls is NodeProcess:
            part = self._node(*args)
        elif cls is PrefillProcess:
            part = self._engine(PrefillEngine, *args, **kwargs)
        elif cls is DecodeProcess:
            part = self._engine(GatedDecode, *args, **kwargs)
            part.copies = self.copies
        else:
            part = cls(*args, **kwargs)
        return self.peer(part, name)

    def _node(
        self,
        node_id: NodeId,
        config: Any,
        layout: Any,
        directory: str,
        writer_id: str,
        transport: TransportSpec,
        nics: NodeNics,
    ) -> NodeAgent:
        staging = StagingMemory.create(node_id, layout, config.staging_bytes // layout.slot_bytes)
        files = self.files.get(node_id)
        store = open_store(config, staging, directory=Path(directory), writer_id=writer_id, files=files)
        server = open_region_server(transport)
        limiter = nics.open(node_id)
        return NodeAgent(node_id, self.store(store, node_id), staging, ReadRules.of(config), server, limiter)

    def _engine(self, cls: type[Engine], engine_id: EngineId, spec: EngineSpec) -> Engine:
        parts = spec.open(spec.config.decode_kv_bytes)
        runner, transport = self.runner(parts.runner, engine_id), self.transport(parts.transport, engine_id)
        return cls(engine_id, replace(parts, runner=runner, transport=transport))


class Gate:
    """While it is shut, threads that come to it wait; a test sees the first of them come."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Event()

    def shut(self) -> None:
        self._reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self._reached.set()
        assert self._open.wait(PATIENCE_S), "a test left a gate shut"

    async def reached(self) -> None:
        """Return when somebody stands before the gate."""
        assert await asyncio.to_thread(self._reached.wait, PATIENCE_S), "nobody came to the gate"


class GatedCopies(Gate):
    """A gate in front of every copy of a prompt; copies may break behind it."""

    breaks = False

    def pass_through(self) -> None:
        super().pass_through()
        if self.breaks:
            raise TransferError("the compute NIC broke")


class GatedDecode(DecodeEngine):
    """The real engine; its copies wait at a gate."""

    copies: GatedCopies

    def _copy_in(self, request_id: RequestId, row: DecodeRow, slots: Sequence[SlotId]) -> None:
        self.copies.pass_through()
        super()._copy_in(request_id, row, slots)


class GatedStore:
    """A store whose reads and writes wait at gates."""

    def __init__(self, store: BlockStore, *, reads: Gate, writes: Gate) -> None:
        self._store = store
        self._reads = reads
        self._writes = writes

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        self._reads.pass_through()
        return self._store.read(reads, deadline_s)

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        self._writes.pass_through()
        return self._store.write(writes, deadline_s)

    def close(self) -> None:
        self._store.close()


class FullStore(GatedStore):
    """A store that takes no block."""

    def __init__(self, store: BlockStore) -> None:
        super().__init__(store, reads=Gate(), writes=Gate())

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        return [None] * len(writes)


class FaultyTransport:
    """A transport whose next writes can be made to wait, to fail, or to arrive with one bit flipped.

    Reads fail, and their bits flip, on their own account.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.num_to_fail = 0
        self.failure = TransferError("the cable is out")
        """What writes fail with."""
        self.num_slow = 0
        """Writes that wait a while for another one to overtake them."""
        self.flip_op: int | None = None
        """Flip a bit of this op of the next write."""
        self.most_in_flight = 0
        self.reads = Gate()
        self.num_reads_to_fail = 0
        self.flip_read = False
        """Flip a bit of the next read."""
        self.region_read = ""
        """The node that was last read from."""
        self._transport: Transport | None = None
        self._in_flight = 0
        self._changed = threading.Condition()

    def around(self, transport: Transport) -> FaultyTransport:
        self._transport = transport
        return self

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        assert self._transport is not None
        self.region_read = region.node_id
        self.reads.pass_through()
        if self.num_reads_to_fail > 0:
            self.num_reads_to_fail -= 1
            raise TransferError("the cable is out")
        self._transport.read(region, lists, traffic_class, deadline_s)
        if self.flip_read:
            self.flip_read = False
            last = lists[-1]
            last.memory[last.local_offsets[-1] + last.sizes[-1] // 2] ^= 0x10

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        assert self._transport is not None
        self._enter()
        try:
            self.gate.pass_through()
            self._fail_or_dawdle()
            self._transport.write(region, self._damaged(lists), traffic_class, deadline_s)
        finally:
            with self._changed:
                self._in_flight -= 1

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _enter(self) -> None:
        with self._changed:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            self._changed.notify_all()

    def _fail_or_dawdle(self) -> None:
        if self.num_to_fail > 0:
            self.num_to_fail -= 1
            raise self.failure
        if self.num_slow > 0:
            self.num_slow -= 1
            with self._changed:
                self._changed.wait_for(lambda: self._in_flight > 1, timeout=0.5)

    def _damaged(self, lists: Sequence[TransferList]) -> Sequence[TransferList]:
        """The lists with one bit flipped in a copy: of the first piece (flip_op 0) or of the last (-1)."""
        if self.flip_op is None:
            return lists
        damaged, index = list(lists), self.flip_op
        moves = damaged[index]
        memory = moves.memory.copy()
        memory[moves.local_offsets[index] + moves.sizes[index] // 2] ^= 0x10
        damaged[index], self.flip_op = replace(moves, memory=memory), None
        return damaged


class WatchedRunner:
    """A runner whose steps wait at gates, may break, and whose decode rows are kept."""

    def __init__(self, runner: Any) -> None:
        self.prefills, self.decodes = Gate(), Gate()
        self.breaks = False
        self.tables: list[list[list[int]]] = []
        """Per decode step, every row's block table."""
        self.before_decode: Callable[[], None] = lambda: None
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def prefill(self, rows: Any, feed: Any) -> Any:
        self.prefills.pass_through()
        if self.breaks:
            raise RuntimeError("a prefill step broke")
        return self._runner.prefill(rows, feed)

    def decode(self, rows: Any) -> Any:
        self.decodes.pass_through()
        self.before_decode()
        if self.breaks:
            raise RuntimeError("a decode step broke")
        self.tables.append([list(row.block_table) for row in rows])
        return self._runner.decode(rows)


class Border:
    """Calls as between processes: a caller that goes away does not end the call."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            answer = asyncio.ensure_future(method(*args, **kwargs))
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            return await asyncio.shield(answer)

        return call


class WatchedDecode:
    """A decode engine that may refuse to generate, or claim more HBM; it counts what it is asked."""

    def __init__(self, engine: Any, kv_tokens: int | None = None) -> None:
        """`kv_tokens`: what the scheduler is told that its pool holds."""
        self._kv_tokens = kv_tokens
        self.hand_overs = asyncio.Semaphore(0)
        """Released once for each turn it took over."""
        self.num_asked = 0
        self.num_to_refuse = 0
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def kv_tokens(self) -> int:
        kv_tokens: int = await self._engine.kv_tokens()
        return kv_tokens if self._kv_tokens is None else self._kv_tokens

    async def hand_over(self, turn: HandOver) -> None:
        await self._engine.hand_over(turn)
        self.hand_overs.release()

    async def generate(self, request_id: RequestId) -> Any:
        self.num_asked += 1
        if self.num_to_refuse > 0:
            self.num_to_refuse -= 1
            raise EngineFailed("it broke")
        return await self._engine.generate(request_id)


# Conversations ----------------------------------------------------------------------------------


def random_ids(num_tokens: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY - 1, (num_tokens,), generator=generator).tolist()


async def take_turn(
    client: EngineClient, context: Context, name: str, sampling: SamplingParams, appended: int
) -> TurnResult:
    """Append random ids that depend on `name`, generate, and append what was generated."""
    context.append(random_ids(appended, seed=sum(name.encode()) * 1000 + appended))
    result = await client.run_turn(context, RequestId(name), sampling, 60.0)
    context.append(result.token_ids)
    return result

"""Engines that take no time, so that what is left of a turn is what the scheduler is asked.

They play every engine and node of a cluster towards a real scheduler in its own process: a real client takes
each turn through them, a real Persistence writes its blocks to a store that forgets them, and nodes report
what they have read. So the calls of a turn, their order and their sizes are those of a real cluster. No KV
moves, nothing is computed, and reads are never moved, as none is ever late.

Several processes may play one cluster, each for its own clients' turns; a file that they share says how much
each node has read, and one of them reports it.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from engines.client import ClientParts, EngineClient
from engines.config import SchedulerConfig
from engines.context import Context
from engines.persist_reserve import PersistReserve
from engines.persistence import Persistence
from engines.read_messages import ReadReport
from engines.scheduler_process import SchedulerProcess
from engines.types import (
    AnnouncedBlock,
    BlockId,
    BlockPersist,
    EngineId,
    EngineInfo,
    FinishReason,
    FirstToken,
    GenerateResult,
    HandOver,
    PhaseSeconds,
    Placement,
    PrefillJob,
    ReadSide,
    RequestId,
    SamplingParams,
    SlotId,
    TurnRequest,
    Weights,
)
from kvstore.keys import KeyChain, WeightsId
from kvstore.layout import BlockLayout
from kvstore.store import BlockLocation

T = TypeVar("T")
_REPORT_PERIOD_S = 0.03
_SEGMENT_BLOCKS = 4096
_DEADLINE_S = 120.0
_FIRST_BLOCK = BlockId(0)


@dataclass(frozen=True, slots=True)
class PlayedCluster:
    """What the processes that play a cluster must agree on."""

    config: SchedulerConfig
    layout: BlockLayout
    weights: Weights
    engines: tuple[EngineInfo, ...]
    reserves: dict[EngineId, tuple[SlotId, ...]]
    """Of decode engines, for persisting."""
    pack_blocks: int
    tally: str
    """A file of zeros: int64 [num_players, num_engines], tokens that each player has read on a node."""
    num_players: int


@dataclass(frozen=True, slots=True)
class PlayedLoad:
    """Agents of one player, each in a closed loop."""

    num_agents: int
    num_blocks: int
    """Stored whole blocks that a session begins with."""
    rounds: int
    """Turns of a session; then the agent begins again with what it began with, and other tokens."""
    append_tokens: int
    output_tokens: int
    think_s: float
    """Before each turn, on average."""
    warm_s: float
    """Nothing is counted before."""
    measured_s: float


@dataclass(frozen=True, slots=True)
class Played:
    """What a player has seen while it was measured."""

    num_turns: int
    hit_tokens: int
    stored_tokens: int
    """Tokens of whole blocks that turns could have hit."""
    submit_s: array[float]
    calls: int
    """Of the scheduler, by anybody here."""
    cpu_s: float


class MeasuredScheduler(SchedulerProcess):
    """A scheduler's process that tells how much CPU it has used."""

    async def cpu_s(self) -> float:
        """Seconds of all threads of the process."""
        return time.process_time()


class _Counted:
    """The scheduler, with its calls counted and its placements timed."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.calls = 0
        self.submit_s = array("d")

    async def submit(self, request: TurnRequest) -> Placement:
        started_s = time.monotonic()
        self.calls += 1
        try:
            return cast(Placement, await self._scheduler.submit(request))
        finally:
            self.submit_s.append(time.monotonic() - started_s)

    def __getattr__(self, method: str) -> Any:
        self.calls += 1
        return getattr(self._scheduler, method)


class _Store:
    """A node's store, as a decode engine writes to it: it is all there at once."""

    def __init__(self, name: str, layout: BlockLayout) -> None:
        self._name, self._nbytes = name, layout.full_block_bytes
        self._num_blocks = 0

    async def persist(
        self, blocks: Sequence[BlockPersist], weights_id: WeightsId, deadline_s: float
    ) -> tuple[BlockLocation, ...]:
        return self.locations(len(blocks))

    def locations(self, num_blocks: int) -> tuple[BlockLocation, ...]:
        first, self._num_blocks = self._num_blocks, self._num_blocks + num_blocks
        return tuple(
            BlockLocation(
                f"{self._name}.{number // _SEGMENT_BLOCKS}.0.kv",
                number % _SEGMENT_BLOCKS * self._nbytes,
                self._nbytes,
                number,
            )
            for number in range(first, first + num_blocks)
        )


class _Traffic:
    """A decode engine's traffic manager, as its Persistence knows it: every slot is the same one."""

    def __init__(self, layout: BlockLayout) -> None:
        self.layout = layout
        self._slot = np.zeros(layout.slot_bytes, np.uint8)

    @property
    def staging(self) -> _Traffic:
        return self

    def slot(self, slot_id: int) -> npt.NDArray[np.uint8]:
        return self._slot

    def store_blocks(self, pool: torch.Tensor, blocks: Sequence[int], slots: Sequence[int]) -> None:
        pass


class _Copier:
    """A decode engine's copier whose copies have ended when they are asked for."""

    def copy(self, move: Callable[[], T], then: Callable[[Future[T]], None]) -> Future[T]:
        copied: Future[T] = Future()
        copied.set_result(move())
        then(copied)
        return copied


class _Decode:
    """A decode engine whose turns end as soon as they begin."""

    def __init__(self, cluster: PlayedCluster, info: EngineInfo, store: _Store, scheduler: Any) -> None:
        self._layout = cluster.layout
        self._pool = torch.zeros(1, 1)
        self._results: dict[RequestId, GenerateResult] = {}
        self._persistence = Persistence(
            _Traffic(cluster.layout),  # type: ignore[arg-type]
            store,  # type: ignore[arg-type]
            scheduler,
            PersistReserve(cluster.reserves[info.engine_id], cluster.pack_blocks),
            _Copier(),  # type: ignore[arg-type]
            run_on_loop=self._on_loop,
            deadline_s=_DEADLINE_S,
        )

    async def hand_over(self, turn: HandOver) -> None:
        await self._persistence.begin_prompt(turn, self._layout, waits_for_copy=True)
        request_id = turn.placement.request_id
        self._persistence.prompt_copied(request_id)
        chain = KeyChain(turn.tail_parent, self._layout.block_tokens)
        chain.extend(turn.tail_ids)
        token_ids = output_ids(turn.first_token, turn.sampling.max_tokens)
        parent = turn.tail_parent
        for key in chain.extend(token_ids[:-1]):  # the last token's KV is never made
            self._persistence.add_block(turn, key, parent, _FIRST_BLOCK)
            parent = key
        self._persistence.free_when_stored(request_id)
        logprobs = array("f", bytes(4 * len(token_ids)))
        self._results[request_id] = GenerateResult(
            token_ids, logprobs, FinishReason.LENGTH, 0.0, PhaseSeconds()
        )

    async def generate(self, request_id: RequestId) -> GenerateResult:
        await self._persistence.expected(request_id)
        return self._results.pop(request_id)

    async def abort(self, request_id: RequestId) -> None:
        self._results.pop(request_id, None)

    def _on_loop(self, message: Callable[[], None]) -> None:
        """The engine's loop is the event loop here."""
        message()
        self._persistence.copy_out(self._pool)


class _Prefill:
    """A prefill engine whose hits are there and whose misses are computed when they are asked for."""

    def __init__(self, player: Player, scheduler: Any) -> None:
        self._player = player
        self._scheduler = scheduler

    async def prefill(self, job: PrefillJob) -> FirstToken:
        placement = job.placement
        self._player.count_reads(placement)
        await asyncio.sleep(0)
        num_whole = len(job.keys)
        block_tokens = self._player.cluster.layout.block_tokens
        tail = num_whole * block_tokens - placement.hit_tokens
        first_token = int(job.miss_ids[-1])
        turn = HandOver(
            placement=placement,
            prompt_tokens=job.prompt_tokens,
            keys=job.keys,
            chain_root=job.chain_root,
            tail_parent=job.keys[-1] if job.keys else job.chain_root,
            tail_ids=job.miss_ids[tail:],
            slot_checksums=(b"\0" * 4,) * len(placement.decode_slots),
            first_token=first_token,
            first_logprob=0.0,
            finish_reason=None,
            sampling=job.sampling,
            sample_id=job.sample_id,
            earlier_ids=job.earlier_ids,
        )
        await self._player.decode[placement.decode_engine].hand_over(turn)
        await self._scheduler.prefilled(placement.request_id, ())
        return FirstToken(first_token, 0.0, None, PhaseSeconds(), placement.hit_tokens)

    async def abort(self, request_id: RequestId) -> None:
        pass


class Player:
    """One process's part in a played cluster; all methods belong to one event loop."""

    def __init__(self, cluster: PlayedCluster, number: int, scheduler: Any) -> None:
        """Player 0 reports what all have read. `scheduler` is a picklable proxy, or the scheduler itself."""
        self.cluster = cluster
        self._number = number
        self._scheduler = scheduler
        self._nodes = [info.node_id for info in cluster.engines]
        shape = (cluster.num_players, len(cluster.engines))
        self._tally = np.memmap(cluster.tally, np.int64, "r+", shape=shape)
        self.decode: dict[EngineId, _Decode] = {}
        self._lines: list[_Counted] = []
        self._client: EngineClient | None = None
        self._bases: list[Context] = []
        self._num_turns = self._hit_tokens = self._stored_tokens = 0

    def count_reads(self, placement: Placement) -> None:
        """The hit of a placed turn has been read."""
        for part in placement.read_plan:
            if part.side is not ReadSide.DRAM:
                node = self._nodes.index(placement.read_node(part.side))
                self._tally[self._number, node] += len(part.blocks) * self.cluster.layout.block_tokens

    async def open(self, load: PlayedLoad) -> None:
        """Have what sessions begin with stored, before anybody plays."""
        self._client = self._open_client()
        for number in range(load.num_agents):
            context = self._client.open_context()
            ids = np.arange(load.num_blocks * self.cluster.layout.block_tokens, dtype=np.int32)
            ids[0] = self._number * load.num_agents + number
            context.append(array("i", ids.tobytes()))
            await self._announce(context)
            self._bases.append(context)

    async def play(self, load: PlayedLoad) -> Played:
        """Have the agents run turns for as long as the load says."""
        tasks = [asyncio.create_task(self._agent(n, base, load)) for n, base in enumerate(self._bases)]
        if self._number == 0:
            tasks.append(asyncio.create_task(self._report()))
        try:
            await _while_none_ends(tasks, load.warm_s)
            before, cpu_s = self._counts(), time.process_time()
            started = [len(line.submit_s) for line in self._lines]
            await _while_none_ends(tasks, load.measured_s)
            after, cpu_s = self._counts(), time.process_time() - cpu_s
            submit_s = array("d")
            for line, start in zip(self._lines, started, strict=True):
                submit_s.extend(line.submit_s[start:])
            turns, hits, stored, calls = (b - a for a, b in zip(before, after, strict=True))
            return Played(turns, hits, stored, submit_s, calls, cpu_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- inside --------------------------------------------------------------------------------------

    def _open_client(self) -> EngineClient:
        cluster = self.cluster
        for_decode, for_prefill = self._line(), self._line()
        prefill: dict[EngineId, _Prefill] = {}
        for info in cluster.engines:
            if info.engine_id in cluster.reserves:
                store = _Store(f"{info.node_id}-{self._number}", cluster.layout)
                self.decode[info.engine_id] = _Decode(cluster, info, store, for_decode)
            else:
                prefill[info.engine_id] = _Prefill(self, for_prefill)
        parts = ClientParts(
            self._line(), prefill, self.decode, cluster.config, cluster.layout, cluster.weights, _DEADLINE_S
        )
        return parts.client()

    def _line(self) -> _Counted:
        """The scheduler, as one more process would call it."""
        line = _Counted(copy(self._scheduler))
        self._lines.append(line)
        return line

    async def _announce(self, context: Context) -> None:
        """The context's blocks have been stored by somebody before."""
        store = _Store(f"before-{self._number}-{len(self._bases)}", self.cluster.layout)
        keys, parents = context.keys, (context.root, *context.keys)
        blocks = [
            AnnouncedBlock(key, parent, location)
            for key, parent, location in zip(keys, parents, store.locations(len(keys)), strict=False)
        ]
        await self._scheduler.announce(blocks, (), self.cluster.weights.weights_id)

    async def _agent(self, number: int, base: Context, load: PlayedLoad) -> None:
        sampling = SamplingParams(max_tokens=load.output_tokens, temperature=0.0)
        rng = np.random.default_rng((self._number, number))
        session = 0
        assert self._client is not None, "open() comes first"
        while True:
            session += 1
            context = base.extended(array("i", [session]))
            for turn in range(load.rounds):
                if load.think_s:
                    await asyncio.sleep(rng.uniform(0, 2 * load.think_s))
                stored = len(context) // self.cluster.layout.block_tokens
                context.append(array("i", range(load.append_tokens)))
                request_id = RequestId(f"{self._number}-{number}-{session}-{turn}")
                result = await self._client.run_turn(context, request_id, sampling, _DEADLINE_S)
                context.append(result.token_ids)
                self._num_turns += 1
                self._hit_tokens += result.hit_tokens
                self._stored_tokens += stored * self.cluster.layout.block_tokens

    async def _report(self) -> None:
        """What a node has read is told as often as node agents do."""
        line = self._line()
        told = np.zeros(len(self._nodes), np.int64)
        while True:
            await asyncio.sleep(_REPORT_PERIOD_S)
            read = self._tally.sum(axis=0)
            for number in np.flatnonzero(read != told).tolist():
                report = ReadReport(self._nodes[number], int(read[number]), 0, 0.0, ())
                await line.report_reads(report)
            told = read

    def _counts(self) -> tuple[int, ...]:
        calls = sum(line.calls for line in self._lines)
        return self._num_turns, self._hit_tokens, self._stored_tokens, calls


async def _while_none_ends(tasks: Iterable[asyncio.Task[None]], seconds: float) -> None:
    """Raise what any of the tasks raises."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def output_ids(first: int, num_tokens: int) -> array[int]:
    """What a turn generates whose first token is `first`."""
    return array("i", [first, *range(1, num_tokens)])

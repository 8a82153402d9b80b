"""Has the nodes read a placed turn's hit, and follows blocks that change sides meanwhile.

Both sides read at once. A node that gives up blocks says so early, and the other side's node is asked for
them at once; the last answer tells what became of the rest. Which blocks move is not decided here.

    load -> moved -> (other node: load ->) rest -> results
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from engines.absences import Absences
from engines.block_spans import blocks_of
from engines.errors import EngineFailed
from engines.peers import NodePeer
from engines.read_messages import BlockLoad, LostBlock, MovedBlock, MoveOrder
from engines.types import NodeId, Placement, ReadSide, RequestId, SlotId
from kvstore.store import BlockReadResult, ReadStatus

_ANSWER_SLACK_S = 5.0
"""For the messages to and fro, after a node's own deadline."""


@dataclass(frozen=True, slots=True)
class LoadedHit:
    """What became of a hit, block by block, once no node reads for it any more."""

    results: tuple[BlockReadResult | None, ...]
    """None: dropped before it began, as the turn was aborted."""
    sides: tuple[ReadSide, ...]
    slots: tuple[SlotId, ...]
    """Of the decode node where the side is ReadSide.DECODE, else of the prefill node."""
    moved: tuple[MovedBlock, ...]
    """Those that were read on another side, or into another slot, than the placement says."""

    @property
    def own_slots(self) -> tuple[SlotId | None, ...]:
        """The prefill node's slots; None: the block was read into its decode slot."""
        pairs = zip(self.sides, self.slots, strict=True)
        return tuple(None if side is ReadSide.DECODE else slot for side, slot in pairs)

    @property
    def is_whole(self) -> bool:
        """Nothing was dropped."""
        return None not in self.results

    @property
    def checksums(self) -> tuple[bytes, ...]:
        """Of a hit that is whole, per block: those of its layers."""
        assert self.is_whole
        return tuple(result.layer_checksums for result in self.results if result is not None)

    def lost(self, placement: Placement) -> dict[int, LostBlock]:
        """By their place in the prompt, the blocks that cannot be used."""
        blocks = (block for part in placement.read_plan for block in part.blocks)
        return {
            index: LostBlock(block.key, slot, side, late=result.status is ReadStatus.TIMED_OUT)
            for index, (block, result, side, slot) in enumerate(
                zip(blocks, self.results, self.sides, self.slots, strict=True)
            )
            if result is not None and result.status is not ReadStatus.OK
        }


class TurnReads:
    """One per prefill engine, on its event loop."""

    def __init__(
        self, nodes: Mapping[NodeId, NodePeer], deadline_s: float, absences: Absences | None = None
    ) -> None:
        """`deadline_s`: longest the reads of one turn may take. Nodes that `absences` names end them."""
        self._nodes = nodes
        self._deadline_s = deadline_s
        self._absences = absences or Absences()
        self._turns: dict[RequestId, _TurnRead] = {}
        self._unanswered: dict[RequestId, frozenset[NodeId]] = {}

    def __len__(self) -> int:
        """Turns that are being read."""
        return len(self._turns)

    async def load(self, placement: Placement) -> LoadedHit:
        """Returns when no node reads for the turn any more.

        Raises EngineFailed if a node gave no answer: it may still write into the turn's slots.
        """
        turn = _TurnRead(placement, self._nodes, self._deadline_s, self._absences)
        self._turns[placement.request_id] = turn
        try:
            return await turn.run()
        except EngineFailed:
            self._unanswered[placement.request_id] = frozenset(turn.unanswered)
            raise
        finally:
            del self._turns[placement.request_id]

    async def drop(self, request_id: RequestId) -> None:
        """Nobody wants what has not begun of the turn's reads; its `load` returns soon."""
        turn = self._turns.get(request_id)
        if turn is not None:
            await turn.drop()

    def unanswered_by(self, request_id: RequestId) -> frozenset[NodeId]:
        """Nodes that were to read for the turn and gave no answer. Asked once a turn."""
        return self._unanswered.pop(request_id, frozenset())


class _TurnRead:
    """One turn's reads."""

    def __init__(
        self,
        placement: Placement,
        nodes: Mapping[NodeId, NodePeer],
        deadline_s: float,
        absences: Absences,
    ) -> None:
        self._placement = placement
        self._nodes = nodes
        self._absences = absences
        self.unanswered: set[NodeId] = set()
        self._end_s = time.monotonic() + deadline_s
        hit = list(placement.hit_blocks())
        self._blocks = [block for _, _, block in hit]
        self._sides = [side for side, _, _ in hit]
        self._slot_of = [slot for _, slot, _ in hit]
        self._results: list[BlockReadResult | None] = [None] * len(hit)
        self._reading: set[asyncio.Task[None]] = set()
        self._some_ended = asyncio.Event()
        self._changed_sides: set[int] = set()
        self._dropped = False

    async def run(self) -> LoadedHit:
        here = [block for block, side in enumerate(self._sides) if side is not ReadSide.DECODE]
        there = [block for block, side in enumerate(self._sides) if side is ReadSide.DECODE]
        self._start(ReadSide.PREFILL, here)
        self._start(ReadSide.DECODE, there)
        failures: list[BaseException] = []
        while self._reading:  # one side's failure does not end the other side's reads
            await self._some_ended.wait()
            self._some_ended.clear()
            done = {task for task in self._reading if task.done()}
            self._reading -= done
            failures += [error for task in done if (error := task.exception()) is not None]
            if failures:
                await self.drop()
        if failures:
            raise failures[0]
        return LoadedHit(tuple(self._results), tuple(self._sides), tuple(self._slot_of), self._moved())

    async def drop(self) -> None:
        """Begin nothing more."""
        if self._dropped:
            return
        self._dropped = True
        node_ids = {self._placement.read_node(side) for side in (ReadSide.PREFILL, ReadSide.DECODE)}
        await asyncio.gather(*(self._drop_on(node_id) for node_id in node_ids))

    async def _drop_on(self, node_id: NodeId) -> None:
        with suppress(EngineFailed, TimeoutError):  # whoever waits for its answer finds out
            async with asyncio.timeout(_ANSWER_SLACK_S):
                drop = self._nodes[node_id].drop(self._placement.request_id)
                await self._absences.unless_absent(node_id, drop)

    def _start(self, side: ReadSide, blocks: Sequence[int]) -> None:
        if blocks:
            reading = asyncio.ensure_future(self._read_on(side, blocks))
            self._reading.add(reading)
            reading.add_done_callback(lambda _: self._some_ended.set())

    async def _read_on(self, side: ReadSide, blocks: Sequence[int]) -> None:
        """One node reads `blocks`; what it gives up is read on the other side, at the same time."""
        node_id = self._placement.read_node(side)
        node, left_s = self._nodes[node_id], max(0.0, self._end_s - time.monotonic())
        try:
            async with asyncio.timeout(left_s + _ANSWER_SLACK_S):
                load = node.load(self._placement.request_id, self._loads(blocks), side, left_s)
                answer = await self._absences.unless_absent(node_id, load)
                gone = self._move(answer.moved)
                while answer.results is None:
                    answer = await self._absences.unless_absent(node_id, node.rest(answer.load_id))
                    gone |= self._move(answer.moved)
        except TimeoutError:
            self.unanswered.add(node_id)
            raise EngineFailed(f"{node_id} did not end its reads within {left_s:.1f} s") from None
        except EngineFailed:
            self.unanswered.add(node_id)
            raise
        stayed = (block for block in blocks if block not in gone)
        for block, result in zip(stayed, answer.results, strict=True):
            self._results[block] = result

    def _moved(self) -> tuple[MovedBlock, ...]:
        now = zip(self._sides, self._slot_of, strict=True)
        placed = ((side, slot) for side, slot, _ in self._placement.hit_blocks())
        return tuple(
            MovedBlock(block, *ends)
            for block, (ends, began) in enumerate(zip(now, placed, strict=True))
            if ends != began
        )

    def _loads(self, blocks: Iterable[int]) -> list[BlockLoad]:
        return [
            BlockLoad(
                block,
                self._slot_of[block],
                self._blocks[block].key,
                None if self._sides[block] is ReadSide.DRAM else self._blocks[block].location,
                moved=block in self._changed_sides,
            )
            for block in blocks
        ]

    def _move(self, orders: Iterable[MoveOrder]) -> set[int]:
        """Blocks that a node gave up: have the other side read them."""
        gone: set[int] = set()
        for order in orders:
            blocks = list(blocks_of(order.spans))
            to_decode = order.to_side is ReadSide.DECODE
            slots = [self._placement.decode_slots[block] for block in blocks] if to_decode else order.slots
            for block, slot in zip(blocks, slots, strict=True):
                self._sides[block], self._slot_of[block] = order.to_side, slot
            gone |= set(blocks)
            self._changed_sides |= set(blocks)
            if not self._dropped:
                self._start(order.to_side, blocks)
        return gone

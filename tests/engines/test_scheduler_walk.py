"""Random walks through the scheduler: whatever is said in whatever order, the books agree, nobody gets a slot
that somebody else has, nobody waits for nobody, and in the end everything is free."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

from engines.config import ReadPlanName
from engines.errors import PlacementTimeout
from engines.read_messages import LostBlock, MovedBlock, MoveOrder, ReadReport, UnreadReads
from engines.types import NodeId, Placement, ReadSide, RequestId, SlotId
from kvstore.keys import BlockKey
from tests.engines.scheduler_bench import (
    LAYOUT,
    LENDABLE,
    PREFILL_1,
    PREFILL_1_SLOTS,
    SLOTS,
    WEIGHTS,
    Bench,
    add_prefill_node,
    keys_of,
    open_bench,
    settle,
    stored,
    turn,
)

ALL_SLOTS = {**SLOTS, PREFILL_1: PREFILL_1_SLOTS}
NUM_PREFILL_NODES = 2


class Walk:
    """Plays clients, engines and stores at random, and keeps its own account of who owns which slot."""

    def __init__(self, bench: Bench, seed: int, dram_slots: int) -> None:
        self.bench = bench
        self.dram_slots = dram_slots
        self.rng = random.Random(seed)
        self.num_submitted = 0
        self.number_of: dict[RequestId, int] = {}
        self.order: dict[NodeId, list[int]] = defaultdict(list)
        """By node, numbers of the turns that waited for no block, as they were placed."""
        self.waiting: dict[RequestId, asyncio.Task[Placement]] = {}
        self.placed: dict[RequestId, Placement] = {}
        self.prefilled: set[RequestId] = set()
        self.finished: set[RequestId] = set()
        self.kept: dict[RequestId, set[SlotId]] = {}
        """Decode slots not released yet."""
        self.quarantined: set[tuple[NodeId, SlotId]] = set()
        """Engines that had these did not answer."""
        self.late: set[tuple[NodeId, SlotId]] = set()
        """Quarantined until their reads settle."""
        self.unsafe: set[tuple[NodeId, SlotId]] = set()
        """In DRAM, used by a turn whose engine did not answer, and by others still."""
        self.doubts: dict[tuple[NodeId, SlotId], set[RequestId]] = {}
        """For which turns somebody may still touch a slot that is quarantined or unsafe."""
        self.num_resolved = 0
        self.content: dict[tuple[NodeId, SlotId], BlockKey] = {}
        """What the prefill engines last read into a slot."""
        self.sides: dict[RequestId, dict[int, tuple[ReadSide, SlotId]]] = {}
        """Where each block of a hit that is read from storage is read, by its place, and into which slot."""
        self.unread: dict[tuple[RequestId, ReadSide], list[int]] = {}
        """Blocks that a side was told to read and has not begun."""
        self.lent_later: dict[RequestId, set[SlotId]] = {}
        """Prefill slots that came with orders to move reads."""
        self.finished_tokens: Counter[NodeId] = Counter()
        self.busy_s: Counter[NodeId] = Counter()
        self.num_moved: Counter[ReadSide] = Counter()
        """Blocks by the side they moved to."""
        self.num_shared = 0
        self.num_read: Counter[ReadSide] = Counter()
        """Hit blocks by where they come from."""
        self.num_late: Counter[ReadSide] = Counter()
        self.expected: list[BlockKey] = []
        self.pause: asyncio.Task[None] | None = None

    async def step(self) -> None:
        self.bench.clock.now_s += self.rng.random()
        moves = [
            (6, self.submit),
            (6, self.report),
            (3, self.end_prefill),
            (4, self.release),
            (3, self.finish),
            (2, self.expect),
            (4, self.announce),
            (1, self.lose),
            (1, self.lose_hit),
            (1, self.settle_late),
            (1, self.resolve),
            (1, self.cancel),
            (1, self.take_back),
            (1, self.pause_or_resume),
        ]
        weights, choices = zip(*moves, strict=True)
        await self.rng.choices(choices, weights)[0]()
        await settle()
        self.collect()
        await self.check()
        for numbers in self.order.values():
            assert numbers == sorted(numbers), "somebody was overtaken"

    # -- moves --

    async def submit(self) -> None:
        # A decode node keeps room for any of these though slots are quarantined: see `finish`.
        prompt_tokens = self.rng.randint(1, 28)
        request = turn(
            f"t{self.num_submitted}",
            prompt_tokens,
            conversation=self.rng.randint(0, 3),
            max_output_tokens=self.rng.randint(1, 40),
        )
        self.number_of[request.request_id] = self.num_submitted
        self.num_submitted += 1
        self.waiting[request.request_id] = self.bench.submit(request)

    async def report(self) -> None:
        """A node reads some of what it has to, tells, and gives up what it is told to, if it hears of it."""
        node_id = self.rng.choice(sorted(ALL_SLOTS))
        mine = {key: blocks for key, blocks in self.unread.items() if self.node_of(*key) == node_id}
        for blocks in mine.values():
            num_read = self.rng.choice([0, 0, 1, len(blocks)])
            self.finished_tokens[node_id] += LAYOUT.block_tokens * len(blocks[:num_read])
            del blocks[:num_read]
        self.busy_s[node_id] += self.rng.choice([0.0, 0.01, 10.0])  # type: ignore[assignment]
        unread = tuple(
            UnreadReads(request_id, side, tuple((b, b + 1) for b in blocks), self.rng.choice([0, 1 << 20]))
            for (request_id, side), blocks in mine.items()
            if blocks
        )
        finished = self.finished_tokens[node_id]
        report = ReadReport(node_id, finished, 1000 * finished, self.busy_s[node_id], unread)
        for order in await self.bench.scheduler.report_reads(report):
            self.move(order, heard=self.rng.random() < 0.8)

    def move(self, order: MoveOrder, *, heard: bool) -> None:
        placement = self.placed[order.request_id]
        blocks = [block for start, end in order.spans for block in range(start, end)]
        slots = [placement.decode_slots[block] for block in blocks]
        if order.to_side is ReadSide.PREFILL:
            slots = list(order.slots)
            # A block that moves back has its slot still.
            self.lent_later.setdefault(order.request_id, set()).update(
                set(slots) - set(placement.prefill_slots)
            )
            for slot in slots:
                self.content.pop((placement.prefill_node, slot), None)
        for block, slot in zip(blocks, slots, strict=True):
            before, _ = self.sides[order.request_id][block]
            assert before is not order.to_side
            assert block in self.unread[order.request_id, before]
            if heard and self.rng.random() < 0.8:  # else it has just begun to read it
                self.unread[order.request_id, before].remove(block)
                self.unread[order.request_id, order.to_side].append(block)
                self.finished_tokens[self.node_of(order.request_id, before)] += LAYOUT.block_tokens
                self.sides[order.request_id][block] = (order.to_side, slot)
                self.num_moved[order.to_side] += 1

    async def end_prefill(self) -> None:
        for request_id in self.some(self.placed.keys() - self.finished - self.prefilled):
            await self.end_prefill_of(request_id)

    async def end_prefill_of(self, request_id: RequestId) -> None:
        placement = self.placed[request_id]
        self.read(placement)
        self.end_reads(request_id, told=True)
        moved = tuple(
            MovedBlock(number, *self.sides[request_id][number])
            for number, (side, _, _) in enumerate(placement.hit_blocks())
            if side is not ReadSide.DRAM and self.sides[request_id][number][0] is not side
        )
        await self.bench.scheduler.prefilled(request_id, moved)
        self.prefilled.add(request_id)
        self.expected += self.bench.new_keys(placement)

    def end_reads(self, request_id: RequestId, *, told: bool) -> None:
        """Both nodes have read or dropped the turn's blocks, or were never `told` of them."""
        for side in (ReadSide.PREFILL, ReadSide.DECODE):
            blocks = self.unread.pop((request_id, side), [])
            self.finished_tokens[self.node_of(request_id, side)] += told * LAYOUT.block_tokens * len(blocks)

    def node_of(self, request_id: RequestId, side: ReadSide) -> NodeId:
        return self.placed[request_id].read_node(side)

    async def release(self) -> None:
        for request_id in self.some(self.kept.keys()):
            slots = self.rng.sample(
                sorted(self.kept[request_id]), self.rng.randint(0, len(self.kept[request_id]))
            )
            self.kept[request_id] -= set(slots)
            await self.bench.scheduler.release_slots(request_id, slots)
            self.forget_if_over(request_id)

    async def finish(self) -> None:
        for request_id in self.some(self.placed.keys()):
            resolved = self.rng.random() < 0.7 or not self.may_lose(request_id)
            await self.bench.scheduler.finish(request_id, resolved=resolved)
            if request_id in self.finished and resolved:
                continue
            self.finished.add(request_id)
            self.end_reads(request_id, told=self.rng.random() < 0.5)
            if not resolved:
                self.set_aside(request_id)
            if not resolved or request_id not in self.prefilled:
                self.kept[request_id] = set()
            self.forget_if_over(request_id)

    async def expect(self) -> None:
        keys = keys_of(self.rng.randint(0, 3), self.rng.randint(4, 28))
        picked = keys[self.rng.randint(0, len(keys) - 1) :]
        self.expected += picked
        await self.bench.scheduler.expect(picked, WEIGHTS.weights_id)
        # The head may have begun to wait for one; who is behind it moves up with the next event.
        if self.pause is None:
            await self.bench.scheduler.resume()

    async def announce(self) -> None:
        self.rng.shuffle(self.expected)
        ended, self.expected = self.expected[:6], self.expected[6:]
        fails = [self.rng.random() < 0.2 for _ in ended]
        failed = [key for key, fail in zip(ended, fails, strict=True) if fail]
        done = [stored(key) for key, fail in zip(ended, fails, strict=True) if not fail]
        await self.bench.scheduler.announce(done, failed, WEIGHTS.weights_id)

    async def lose(self) -> None:
        keys = keys_of(self.rng.randint(0, 3), 28)
        await self.bench.lose(self.rng.sample(keys, 2))

    async def lose_hit(self) -> None:
        """A turn meets blocks it cannot use; reads that are late end before or after that is said."""
        hits = {r for r, p in self.placed.items() if p.hit_tokens} - self.prefilled - self.finished
        for request_id in self.some(hits):
            placement = self.placed[request_id]
            number = self.rng.randrange(placement.hit_tokens // LAYOUT.block_tokens)
            side, slot, block = list(placement.hit_blocks())[number]
            side, slot = self.sides[request_id].get(number, (side, slot))
            node_id = placement.read_node(side)
            held = side is ReadSide.PREFILL or (side is ReadSide.DECODE and slot in self.kept[request_id])
            late = held and self.may_lose_slots({node_id: 1}) and self.rng.random() < 0.5
            settles = late and self.rng.random() < 0.3
            if settles:
                await self.bench.scheduler.settled(node_id, [slot])
            self.end_reads(request_id, told=self.rng.random() < 0.5)
            await self.bench.scheduler.hit_lost(request_id, [LostBlock(block.key, slot, side, late)])
            if late and not settles:
                self.late.add((node_id, slot))
                self.num_late[side] += 1
            del self.placed[request_id], self.kept[request_id]

    async def settle_late(self) -> None:
        """Reads end: late ones, and some of which nobody says that they were late."""
        for node_id, slot in self.rng.sample(sorted(self.late), min(1, len(self.late))):
            await self.bench.scheduler.settled(node_id, [slot])
            self.late.discard((node_id, slot))
        for node_id, slot in self.rng.sample(sorted(self.quarantined), min(1, len(self.quarantined))):
            await self.bench.scheduler.settled(node_id, [slot])

    async def resolve(self) -> None:
        """Those who gave no answer about a turn say that they have let go of it."""
        for request_id in self.some(set().union(*self.doubts.values())):
            self.resolve_one(request_id)

    def resolve_one(self, request_id: RequestId) -> None:
        self.num_resolved += 1
        for node_id in ALL_SLOTS:
            self.bench.scheduler.resolve(request_id, node_id)
        for place, turns in list(self.doubts.items()):
            turns.discard(request_id)
            if not turns:
                del self.doubts[place]
                self.quarantined.discard(place)
                self.unsafe.discard(place)

    async def cancel(self) -> None:
        """The caller goes away, as clients do: it ends what it may have been given."""
        for request_id in self.some(self.waiting.keys()):
            task = self.waiting.pop(request_id)
            task.cancel()
            await asyncio.wait([task])
            self.bench.clock.now_s += 1.0
            await self.bench.scheduler.finish(request_id)

    async def take_back(self) -> None:
        """The caller went away in another process: only its finish arrives."""
        for request_id in self.some(self.waiting.keys()):
            await self.bench.scheduler.finish(request_id)

    async def pause_or_resume(self) -> None:
        if self.pause is None:
            self.pause = asyncio.create_task(self.bench.scheduler.pause(60))
        else:
            self.pause.cancel()
            await asyncio.wait([self.pause])
            self.pause = None
            await self.bench.scheduler.resume()

    # -- the account --

    def some(self, request_ids: Any) -> list[RequestId]:
        """One of them, if there is one."""
        ordered = sorted(request_ids)
        return [self.rng.choice(ordered)] if ordered else []

    def collect(self) -> None:
        for request_id, task in list(self.waiting.items()):
            if not task.done():
                continue
            del self.waiting[request_id]
            if isinstance(task.exception(), PlacementTimeout):
                continue
            placement = task.result()
            self.placed[request_id] = placement
            self.kept[request_id] = set(placement.decode_slots)
            if not placement.waited.persist_wait:
                for node_id in (placement.prefill_node, placement.decode_node):
                    self.order[node_id].append(self.number_of[request_id])
            assert min(placement.waited.values()) > -1e-9
            assert placement.hit_tokens % LAYOUT.block_tokens == 0
            assert len(list(placement.hit_blocks())) * LAYOUT.block_tokens == placement.hit_tokens
            sides = [side for side, _, _ in placement.hit_blocks()]
            assert len(placement.prefill_slots) == len(sides) - sides.count(ReadSide.DECODE)
            self.num_read.update(sides)
            self.sides[request_id] = {
                number: (side, slot)
                for number, (side, slot, _) in enumerate(placement.hit_blocks())
                if side is not ReadSide.DRAM
            }
            for side in (ReadSide.PREFILL, ReadSide.DECODE):
                blocks = [n for n, (where, _) in self.sides[request_id].items() if where is side]
                self.unread[request_id, side] = blocks
            self.look_at_slots(placement)

    def may_lose(self, request_id: RequestId) -> bool:
        """Whether every node still has room for the largest turn without this one's slots."""
        placement = self.placed[request_id]
        lent_later = len(self.lent_later.get(request_id, ()))
        slots = {placement.prefill_node: len(placement.prefill_slots) + lent_later}
        slots[placement.decode_node] = len(placement.decode_slots)
        return self.may_lose_slots(slots)

    def may_lose_slots(self, slots: Mapping[NodeId, int]) -> bool:
        """Whether every node still has room for the largest turn without so many more."""
        lost = Counter(node_id for node_id, _ in self.quarantined | self.late | self.unsafe)
        lost.update(slots)
        return max(lost.values()) <= 4

    def read(self, placement: Placement) -> None:
        """The prefill engine has read the turn's blocks."""
        keys = [block.key for _, _, block in placement.hit_blocks()]
        for number, (side, slot) in self.sides[placement.request_id].items():
            if side is ReadSide.PREFILL:
                self.content[placement.prefill_node, slot] = keys[number]

    def look_at_slots(self, placement: Placement) -> None:
        """A block that is said to be in memory is there; what else the turn has may be written to."""
        for side, slot, block in placement.hit_blocks():
            if side is ReadSide.DRAM:
                assert self.content[placement.prefill_node, slot] == block.key, (
                    "another block is in that slot"
                )
                self.num_shared += 1
            elif side is ReadSide.PREFILL:
                self.content.pop((placement.prefill_node, slot), None)
            else:
                assert slot in placement.decode_slots
        for slot in placement.decode_slots:
            self.content.pop((placement.decode_node, slot), None)

    def set_aside(self, request_id: RequestId) -> None:
        placement = self.placed[request_id]
        own = {(placement.decode_node, slot) for slot in self.kept[request_id]}
        shared = set[tuple[NodeId, SlotId]]()
        if request_id not in self.prefilled:
            own |= {(placement.prefill_node, slot) for slot in self.lent_later.get(request_id, ())}
            for side, slot, _ in placement.hit_blocks():
                if side is not ReadSide.DECODE:
                    (shared if side is ReadSide.DRAM else own).add((placement.prefill_node, slot))
        self.quarantined |= own
        self.unsafe |= shared
        for place in own | shared:
            self.doubts.setdefault(place, set()).add(request_id)

    def forget_if_over(self, request_id: RequestId) -> None:
        if request_id in self.finished and not self.kept[request_id]:
            del self.placed[request_id], self.kept[request_id]

    def owned(self) -> list[tuple[NodeId, SlotId]]:
        """Every slot anybody owns, once per owner."""
        slots = [*self.quarantined, *self.late]
        slots += [(node_id, slot) for node_id, own in self.bench.reserves.items() for slot in own]
        for request_id, placement in self.placed.items():
            slots += [(placement.decode_node, slot) for slot in self.kept[request_id]]
            if self.is_prefilling(request_id):
                lent_later = self.lent_later.get(request_id, set())
                slots += [(placement.prefill_node, slot) for slot in lent_later]
                slots += [
                    (placement.prefill_node, slot)
                    for side, slot, _ in placement.hit_blocks()
                    if side is ReadSide.PREFILL
                ]
        return slots

    def shared(self) -> set[tuple[NodeId, SlotId]]:
        """Slots in DRAM that turns use."""
        return {
            (placement.prefill_node, slot)
            for request_id, placement in self.placed.items()
            if self.is_prefilling(request_id)
            for side, slot, _ in placement.hit_blocks()
            if side is ReadSide.DRAM
        }

    def is_prefilling(self, request_id: RequestId) -> bool:
        return request_id not in self.prefilled and request_id not in self.finished

    async def check(self) -> None:
        scheduler = self.bench.scheduler
        scheduler.check()
        shared = self.shared()
        self.quarantined |= self.unsafe - shared
        self.unsafe &= shared
        owned, figures = self.owned(), await scheduler.figures()
        assert len(set(owned)) == len(owned), "a slot has two owners"
        assert not shared & set(owned), "a slot that somebody owns is shared"
        kept = figures["dram_slots"]
        assert len(shared) <= kept <= self.dram_slots * NUM_PREFILL_NODES + len(shared)
        assert figures["free_slots"] == sum(ALL_SLOTS.values()) - len(owned) - kept, (figures, len(owned))
        assert figures["quarantined_slots"] == len(self.quarantined | self.late)
        assert figures["placed"] == len(self.placed)
        if self.pause is None:
            waited_for = figures["placed"] or self.expected
            assert waited_for or not figures["queue_length"], "somebody waits for nobody"
            await scheduler.resume()
            again = await scheduler.figures()
            left = figures["slot_queue_length"] - again["slot_queue_length"]
            # A head whose block is made by now on other nodes leaves its line with the next event there.
            if left <= (num_placed := again["placed"] - figures["placed"]):
                assert not num_placed, "the head had a place and did not get it"
            await settle()
            self.collect()
        elif self.pause.done():
            assert not figures["placed"]

    async def end(self) -> None:
        """Everybody does what is left to do; nobody new comes."""
        if self.pause is not None:
            await self.pause_or_resume()
        while self.waiting or self.placed or self.expected:
            before = (len(self.waiting), len(self.placed), len(self.expected))
            self.bench.clock.now_s += 1.0
            await self.announce()
            for request_id, placement in list(self.placed.items()):
                self.bench.clock.now_s += 1.0
                if self.is_prefilling(request_id):
                    await self.end_prefill_of(request_id)
                self.prefilled.add(request_id)
                self.kept[request_id] = set()
                self.finished.add(request_id)
                await self.bench.end(placement)
                self.forget_if_over(request_id)
            await settle()
            self.collect()
            await self.check()
            assert (len(self.waiting), len(self.placed), len(self.expected)) != before, "deadlock"
        for request_id in set().union(*self.doubts.values()):
            self.resolve_one(request_id)
        await self.check()
        assert not self.quarantined | self.unsafe


@pytest.mark.parametrize("plan", ["basic", "dual", "split", "alternate"])
@pytest.mark.parametrize("first_seed", range(0, 200, 100))
def test_no_walk_through_the_scheduler_leaks_or_gets_stuck(first_seed: int, plan: ReadPlanName) -> None:
    async def run(seed: int) -> Walk:
        dram_slots = seed % 7
        bench = await open_bench(pending_deadline_s=60, dram_slots=dram_slots, read_plan=plan)
        await add_prefill_node(bench)
        walk = Walk(bench, seed, dram_slots)
        for _ in range(80):
            await walk.step()
        await walk.end()
        figures = await bench.scheduler.figures()
        free = LENDABLE + PREFILL_1_SLOTS - len(walk.late)
        assert figures["free_slots"] + figures["dram_slots"] == free, (seed, figures)
        assert walk.late or not figures["read_queue_tokens"], (seed, figures)
        return walk

    walks = [asyncio.run(run(seed)) for seed in range(first_seed, first_seed + 100)]
    # The walks went where they should.
    assert sum(len(numbers) for walk in walks for numbers in walk.order.values()) > 600
    assert sum(walk.num_resolved for walk in walks) > 10
    assert sum(walk.num_shared for walk in walks) > (20 if plan == "basic" else 5)
    read, late = (sum((getattr(w, n) for w in walks), Counter()) for n in ("num_read", "num_late"))
    expected = {ReadSide.PREFILL} if plan == "basic" else {ReadSide.PREFILL, ReadSide.DECODE}
    assert set(read) - {ReadSide.DRAM} == expected, read
    # Late reads are rare: sides taken in turn show them on both sides only in some hundreds of walks.
    assert late
    assert set(late) <= expected if plan == "alternate" else set(late) == expected, late
    moved = sum((walk.num_moved for walk in walks), Counter())
    assert set(moved) == ({ReadSide.PREFILL, ReadSide.DECODE} if plan == "split" else set()), moved
